"""What a fatbin holds: machine code for several architectures and PTX, and what each kernel takes of a GPU.

    fatbin  u32 magic | u16 version | u16 header size | u64 size | images
    image   u16 kind | u16 version | u32 header size | u64 size of the code | ... | at 28: u32 architecture | ... | code

NVIDIA does not document either format; this was read off files that its tools wrote.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

import lief

MAGIC = 0xBA55ED50
PTX, MACHINE_CODE = 1, 2
ARCHITECTURE_OFFSET = 28
WITH_SIZE = 4  # format of an attribute that is followed by so many bytes
REGISTERS, STACK = 0x2F, 0x11  # attributes whose values are pairs of a symbol's index and a number
INFO, SHARED = ".nv.info", ".nv.shared."
RESERVED = ".nv.shared.reserved.0"  # there where the system keeps the start of shared memory for itself, from sm_90 on
RESERVED_BYTES = 1024


@dataclass(frozen=True)
class Image:
    """``architecture`` is ``sm_90`` for machine code and ``compute_90`` for PTX, which may be compressed."""

    architecture: str
    code: bytes

    @property
    def is_machine_code(self) -> bool:
        return self.architecture.startswith("sm_")


@dataclass(frozen=True)
class Resources:
    """What a kernel takes: 32-bit registers a thread, bytes of stack a thread (what does not fit into registers: spills, and
    arrays with indices that are no constants), and bytes of shared memory a block."""

    registers: int
    stack: int
    shared: int


def read_fatbin(data: bytes) -> list[Image]:
    """Raises ValueError for anything else."""
    try:
        magic, _, header, size = struct.unpack_from("<IHHQ", data)
        if magic != MAGIC or header + size != len(data):
            raise ValueError("no fatbin, or one of another length")
        images, offset = [], header
        while offset < len(data):
            kind, _, header, size = struct.unpack_from("<HHIQ", data, offset)
            (number,) = struct.unpack_from("<I", data, offset + ARCHITECTURE_OFFSET)
            if kind not in (PTX, MACHINE_CODE) or offset + header + size > len(data):
                raise ValueError(f"an image of kind {kind} with {size} bytes")
            name = f"{'sm' if kind == MACHINE_CODE else 'compute'}_{number}"
            images.append(Image(name, data[offset + header : offset + header + size]))
            offset += header + size
    except struct.error as error:
        raise ValueError(str(error)) from None
    return images


def read_resources(cubin: bytes) -> dict[str, Resources]:
    """What each kernel takes of a multiprocessor, by its name. Raises ValueError for what is no machine code of CUDA's."""
    parsed = lief.ELF.parse(io.BytesIO(cubin))
    if parsed is None or parsed.header.machine_type != lief.ELF.ARCH.CUDA:
        raise ValueError("no machine code of CUDA's")
    symbols = [str(symbol.name) for symbol in parsed.symtab_symbols]
    found: dict[int, dict[str, int]] = {REGISTERS: {}, STACK: {}}
    info, offset = parsed.get_section(INFO), 0
    if info is None:
        raise ValueError(f"machine code without {INFO}")
    data = bytes(info.content)
    try:
        while offset < len(data):
            form, attribute, size = struct.unpack_from("<BBH", data, offset)
            if attribute in found:
                index, value = struct.unpack_from("<II", data, offset + 4)
                found[attribute][symbols[index]] = value
            offset += 4 + (size if form == WITH_SIZE else 0)
    except (struct.error, IndexError) as error:
        raise ValueError(f"a damaged {INFO} ({error})") from None
    sizes = {name: section.size for section in parsed.sections if (name := str(section.name)).startswith(SHARED)}
    reserved = RESERVED_BYTES if RESERVED in sizes else 0
    shared = {name.removeprefix(SHARED): size - reserved for name, size in sizes.items()}
    return {
        name: Resources(registers, found[STACK].get(name, 0), shared.get(name, 0))
        for name, registers in found[REGISTERS].items()
    }

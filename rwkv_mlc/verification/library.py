"""What is inside a library file, of whatever system: nothing of it is run."""

from __future__ import annotations

import io
import tarfile
import warnings
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import lief

from ..errors import UserError
from ..library_format import KERNEL_KINDS, ImportedModule, KernelModule, read_modules
from ..regular_files import read_bytes

BLOB = "__tvm_ffi__library_bin"
CONTEXT = "__tvm_ffi__library_ctx"
FUNCTION = "__tvm_ffi_"
LARGEST_FILE, LARGEST_OBJECTS = 1 << 30, 1 << 28  # bytes
ELF_HEADER, MACHO_HEADER = 64, 32  # bytes
ARCHIVE_END = bytes(1024)
GZIP = b"\x1f\x8b"

lief.logging.disable()
warnings.filterwarnings("ignore", r"\d+ is not a valid ", RuntimeWarning)  # of its constants, in a damaged file


@dataclass(frozen=True)
class Library:
    """``binaries`` is the shared library, or the object files of a ``.tar``. ``exports`` and ``imports`` are names of symbols
    as C writes them, ``prefix`` what those of a system library begin with; ``modules`` are the imported ones."""

    path: Path
    format: Literal["ELF", "Mach-O", "ELF objects"]
    architecture: str
    binaries: tuple[lief.Binary, ...]
    exports: tuple[str, ...]
    imports: tuple[str, ...]
    prefix: str
    modules: tuple[ImportedModule, ...]

    @classmethod
    def open(cls, path: Path) -> Library:
        """Raises UserError for a file that is no library of TVM's, or a damaged one."""
        try:
            data = read_bytes(path, LARGEST_FILE)
            binaries = _objects(data) if path.suffix == ".tar" else [_parse(data)]
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); name a library or an artifact.") from None
        except (tarfile.TarError, EOFError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}); name a whole library that build wrote.") from None
        if not binaries or not all(isinstance(binary, lief.ELF.Binary | lief.MachO.Binary) for binary in binaries):
            raise UserError(f"{path} is no ELF or Mach-O library and no .tar of objects; name one that build wrote.")
        exports = {name for binary in binaries for name in _defined(binary)}
        imports = {name for binary in binaries for name in _undefined(binary)} - exports
        holders = [(binary, name) for binary in binaries for name in _defined(binary) if name.endswith(BLOB)]
        if len(holders) != 1:
            raise UserError(f"{path} holds no {BLOB}: it is no library that build wrote.")
        (binary, name), prefix = holders[0], holders[0][1].removesuffix(BLOB)
        try:
            modules = read_modules(_content(binary, name))
        except ValueError as error:
            raise UserError(f"The modules inside {path} are damaged ({error}); build it again.") from None
        shared = "Mach-O" if isinstance(binary, lief.MachO.Binary) else "ELF"
        return cls(
            path=path,
            format="ELF objects" if path.suffix == ".tar" else shared,
            architecture=_architecture(binary),
            binaries=tuple(binaries),
            exports=tuple(sorted(exports)),
            imports=tuple(sorted(imports)),
            prefix=prefix,
            modules=tuple(modules),
        )

    @property
    def kind(self) -> str | None:
        """The kind of the kernels' module; None for a CPU's, which are part of the library itself."""
        return next((module.kind for module in self.modules if module.kind in KERNEL_KINDS), None)

    def kernel_modules(self) -> list[KernelModule]:
        """Raises ValueError for a damaged one."""
        return [KernelModule.parse(module.data) for module in self.modules if module.kind in KERNEL_KINDS]

    @property
    def functions(self) -> list[str]:
        """Names of the functions that the library's own code offers to TVM."""
        own = FUNCTION + self.prefix
        inner = (name.removeprefix(own) for name in self.exports if name.startswith(own))
        return [name for name in inner if not name.startswith("_library")]


def _objects(data: bytes) -> list[lief.Binary | None]:
    """Raises ValueError for an archive without its end, and for a member that says to be larger than the archive is."""
    data = _uncompressed(data)
    if data and not data.endswith(ARCHIVE_END):
        raise ValueError("it is cut, or no archive")
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        members = [member for member in archive.getmembers() if member.isfile()]
        if any(member.size > len(data) for member in members):
            raise ValueError("a member is larger than the archive")
        return [_parse(archive.extractfile(member).read()) for member in members]


def _uncompressed(data: bytes) -> bytes:
    """Raises ValueError where a little stands for more than any library has."""
    if not data.startswith(GZIP):
        return data
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        content = inflater.decompress(data, LARGEST_OBJECTS)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if not inflater.eof:
        raise ValueError(f"it is cut, or holds more than {LARGEST_OBJECTS:,} bytes")
    return content


def _parse(data: bytes) -> lief.Binary | None:
    """The first architecture of a Mach-O for several, which always comes wrapped as if there were. Raises ValueError for less
    than the headers speak of."""
    parsed = lief.parse(io.BytesIO(data))
    binary = parsed.take(parsed.at(0).header.cpu_type) if isinstance(parsed, lief.MachO.FatBinary) else parsed
    if isinstance(binary, lief.ELF.Binary | lief.MachO.Binary) and len(data) < (whole := _extent(binary)):
        raise ValueError(f"it is cut or damaged: it has {len(data):,} bytes, and by its headers {whole:,}")
    return binary


def _extent(binary: lief.ELF.Binary | lief.MachO.Binary) -> int:
    """How many bytes the file has by what its headers say."""
    header = binary.header
    if isinstance(binary, lief.MachO.Binary):
        own, ends = MACHO_HEADER + header.sizeof_cmds, [s.file_offset + s.file_size for s in binary.segments]
    else:
        own = max(ELF_HEADER, header.section_header_offset + header.numberof_sections * header.section_header_size)
        ends = [s.file_offset + s.physical_size for s in binary.segments]
    return max([own, *ends])


def _c_name(binary: lief.Binary, symbol: lief.Symbol) -> str:
    """Mach-O puts an underscore before every name of C. What is not UTF-8 comes as bytes."""
    name = symbol.name if isinstance(symbol.name, str) else symbol.name.decode("utf-8", "backslashreplace")
    return name.removeprefix("_") if isinstance(binary, lief.MachO.Binary) else name


def _defined(binary: lief.Binary) -> list[str]:
    if isinstance(binary, lief.MachO.Binary):
        symbols = binary.exported_symbols
    else:
        symbols = [s for s in _elf_symbols(binary) if s.shndx and s.binding != lief.ELF.Symbol.BINDING.LOCAL]
    return [_c_name(binary, symbol) for symbol in symbols if symbol.name]


def _undefined(binary: lief.Binary) -> list[str]:
    if isinstance(binary, lief.MachO.Binary):
        symbols = [binding.symbol for binding in binary.bindings if binding.has_symbol]
    else:
        strong = lief.ELF.Symbol.BINDING.GLOBAL
        symbols = [s for s in _elf_symbols(binary) if not s.shndx and s.binding == strong]
    return [_c_name(binary, symbol) for symbol in symbols if symbol.name]


def _elf_symbols(binary: lief.ELF.Binary) -> Iterable[lief.ELF.Symbol]:
    return binary.symtab_symbols if binary.header.file_type == lief.ELF.Header.FILE_TYPE.REL else binary.dynamic_symbols


def _content(binary: lief.Binary, name: str) -> bytes:
    """The blob behind a symbol: its first number is its size."""
    if isinstance(binary, lief.ELF.Binary):
        symbol = next(s for s in _elf_symbols(binary) if s.name == name)
        if binary.header.file_type == lief.ELF.Header.FILE_TYPE.REL:
            return bytes(symbol.section.content[symbol.value : symbol.value + symbol.size])
        return bytes(binary.get_content_from_virtual_address(symbol.value, symbol.size))
    address = binary.get_symbol(f"_{name}").value
    size = int.from_bytes(bytes(binary.get_content_from_virtual_address(address, 8)), "little")
    return bytes(binary.get_content_from_virtual_address(address, 8 + size))


def _architecture(binary: lief.Binary) -> str:
    machine = binary.header.cpu_type if isinstance(binary, lief.MachO.Binary) else binary.header.machine_type
    return {"ARM64": "aarch64"}.get(enum_name(machine), enum_name(machine).lower())


def enum_name(value: object) -> str:
    """The name of a constant, which lief gives as a number where it knows none."""
    return str(getattr(value, "name", value))

"""Whether a library can run here, found out before it is loaded."""

from __future__ import annotations

import importlib.metadata
import mmap
import re
import struct
import sys
from pathlib import Path

from ..artifact import LibraryRecord
from ..errors import UserError
from ..escaping import quoted
from ..machine.cpu_features import host_architecture, host_features
from ..regular_files import size_of
from ..schema import LibraryMetadata
from ..typed_json import LARGEST_FILE
from .older_libraries import described

MACHINES = {"x86_64": 62, "aarch64": 183}  # of ELF
HEADER, SEGMENT = struct.Struct("<4sBBBBB7xHHIQQQIHHHHHH"), struct.Struct("<IIQQQQQQ")
SHARED_OBJECT, BITS_64, LITTLE_ENDIAN = 3, 2, 1
MODULES = b"__tvm_ffi__library_bin"
"""The symbol that every library of TVM's has."""
METADATA = re.compile(rb'(.{8})(\{"(?:interface|model_config|model_type)":)', re.DOTALL)


def _check_elf(path: Path, architecture: str) -> None:
    """Raises UserError for what the system would refuse, die of or run although it is no library of ours: another kind of
    file, one for another CPU, one that was cut, one that TVM did not write."""
    again = "build it again"
    try:
        size = size_of(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {again}.") from None
    with open(path, "rb") as file:
        head = file.read(HEADER.size)
        if len(head) < HEADER.size or not head.startswith(b"\x7fELF"):
            raise UserError(f"{path} is no shared library; {again}.")
        _, bits, order, *_, kind, machine, _, _, segments, _, _, _, entry, count, _, _, _ = HEADER.unpack(head)
        if (bits, order, kind, machine) != (BITS_64, LITTLE_ENDIAN, SHARED_OBJECT, MACHINES.get(architecture, machine)):
            raise UserError(f"{path} is no shared library for {architecture}; {again}.")
        if entry != SEGMENT.size or segments + entry * count > size:
            raise UserError(f"{path} is damaged: it ends too early; {again}.")
        file.seek(segments)
        table = file.read(entry * count)
        for _, _, offset, _, _, length, _, _ in SEGMENT.iter_unpack(table):
            if offset + length > size:
                raise UserError(f"{path} is damaged: it ends too early; {again}.")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(MODULES) < 0:
                raise UserError(f"{path} is no library that rwkv-mlc wrote; {again}.")


def read_metadata(path: Path) -> LibraryMetadata:
    """What a library says of itself, read off the file: the constant that its function ``_metadata`` returns, a string after
    its length. Nothing of it is loaded. Raises UserError where it says nothing."""
    if path.stat().st_size:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for match in METADATA.finditer(content):
                (size,) = struct.unpack("<Q", match[1])
                if size <= LARGEST_FILE:
                    return described(LibraryMetadata.read(content[match.start(2) : match.start(2) + size], path))
    raise UserError(f"{path} does not describe itself: it is no library that rwkv-mlc wrote; build it again.")


def check_library(library: LibraryRecord, target: str) -> None:
    """Raises UserError for object files, and for a library of another architecture, of a CPU with features that this one
    lacks, or of another version of TVM, whose runtime format may differ, for a file that is none or not ours, and for one
    that is not for the ``target`` that it is recorded for."""
    if library.path.suffix == ".tar":
        raise UserError(f"{library.path} is to be linked into a program; write one to load with rwkv-mlc compile.")
    architecture = (library.triple or host_architecture()).partition("-")[0].replace("arm64", "aarch64")
    again = "build it again on this machine"
    if (library.path.suffix == ".dylib") != (sys.platform == "darwin"):
        system = "macOS" if library.path.suffix == ".dylib" else "another system"
        raise UserError(f"{library.path} is for {system} and this machine runs {sys.platform}; {again}.")
    if architecture != host_architecture():
        raise UserError(f"{library.path} is for {architecture} and this machine is {host_architecture()}; {again}.")
    features = host_features()
    missing = [] if features is None else [name for name in library.cpu_features if name not in features]
    if missing:
        cpu = library.target.get("mcpu", "another CPU")
        raise UserError(f"{library.path} is for {cpu} and needs {', '.join(missing)}, which this CPU lacks; {again}.")
    built, installed = library.versions.get("apache-tvm"), importlib.metadata.version("apache-tvm")
    if built != installed:
        raise UserError(
            f"{library.path} was built with apache-tvm {built} and {installed} is installed; build it again, or install "
            f"apache-tvm=={built}."
        )
    if sys.platform != "darwin":
        _check_elf(library.path, architecture)
    if (compiled := read_metadata(library.path).target) != target:
        raise UserError(
            f"{library.path} is recorded as the library for {target} and was compiled for {quoted(compiled)}; build it again."
        )

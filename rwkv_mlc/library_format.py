"""The format of the modules inside a library, which TVM writes as the data of the symbol ``__tvm_ffi__library_bin``.

    blob       u64 size | u64 n + 1, n + 1 x u64 row | u64 m, m x u64 child | n modules
    module     "_lib", which stands for the library's own code, or kind | bytes
    kernels    format | functions | code, the bytes of a module of a kind in ``KERNEL_KINDS``
    functions  u64 n x (name | name | u64 n x argument type | u64 n x launch parameter | u64 n x i32 tag)
    code       one string, or for the formats in ``BY_KERNEL`` u64 n x (name | string)

Numbers are little endian; a string is its u64 length and its bytes; an argument type is u8 code, u8 bits, u16 lanes.
The children of module i are children[rows[i]] to children[rows[i + 1]].
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

LIBRARY = "_lib"
KERNEL_KINDS = ("cuda", "metal", "opencl", "vulkan")
BY_KERNEL = ("metal", "metallib", "vulkan")
ALL = ""  # the name of code that holds all kernels


@dataclass(frozen=True)
class ImportedModule:
    """One entry of a blob; ``data`` is empty for ``LIBRARY``."""

    kind: str
    data: bytes


@dataclass(frozen=True)
class KernelModule:
    """A module of kernels, taken apart. ``format`` is that of the code, ``names`` are those of the kernels,
    ``functions`` describes them as bytes, ``code`` goes by the kernels' names or lies under ``ALL``."""

    format: str
    names: tuple[str, ...]
    functions: bytes
    code: Mapping[str, bytes]

    @classmethod
    def parse(cls, data: bytes) -> KernelModule:
        """Take the bytes of a module apart. Raises ValueError where they are none, or damaged."""
        reader = Reader(data)
        form = reader.text()
        start, names = reader.offset, []
        for _ in range(reader.number()):
            names.append(reader.text())
            reader.text()
            reader.take(4 * reader.number())
            for _ in range(reader.number()):
                reader.text()
            reader.take(4 * reader.number())
        functions = data[start : reader.offset]
        if form in BY_KERNEL:
            code = {reader.text(): reader.string() for _ in range(reader.number())}
        else:
            code = {ALL: reader.string()}
        reader.expect_end()
        return cls(form, tuple(names), functions, code)

    def serialize(self) -> bytes:
        """Write the bytes that ``parse`` reads."""
        if self.format in BY_KERNEL:
            code = counted([string(name.encode()) + string(code) for name, code in self.code.items()])
        else:
            code = string(self.code[ALL])
        return string(self.format.encode()) + self.functions + code

    def with_code(self, form: str, code: bytes) -> KernelModule:
        """Replace all code by that of a format that holds the kernels together."""
        return dataclasses.replace(self, format=form, code={ALL: code})


def read_modules(blob: bytes) -> list[ImportedModule]:
    """Read every module of a blob, in its order. Raises ValueError where the blob is damaged."""
    return _parse(blob)[1]


def rewrite_modules(blob: bytes, rewrite: Callable[[ImportedModule], ImportedModule]) -> bytes:
    """Pass every module of a blob but ``LIBRARY`` through ``rewrite``. Raises ValueError where the blob is damaged."""
    tree, modules = _parse(blob)
    written = [tree]
    for module in modules:
        if module.kind == LIBRARY:
            written.append(string(LIBRARY.encode()))
        else:
            module = rewrite(module)
            written += [string(module.kind.encode()), string(module.data)]
    return string(b"".join(written))


def _parse(blob: bytes) -> tuple[bytes, list[ImportedModule]]:
    """Split a blob into the bytes of the tree and the modules."""
    reader = Reader(Reader(blob).string())
    rows = reader.number()
    reader.take(8 * rows)
    reader.take(8 * reader.number())
    tree, modules = reader.data[: reader.offset], []
    for _ in range(rows - 1):
        kind = reader.text()
        modules.append(ImportedModule(kind, b"" if kind == LIBRARY else reader.string()))
    reader.expect_end()
    return tree, modules


class Reader:
    """Reads numbers and strings one after the other. Every method raises ValueError where the data are others."""

    def __init__(self, data: bytes):
        self.data, self.offset = data, 0

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.offset:
            raise ValueError(f"{size} bytes expected at {self.offset} of {len(self.data)}")
        self.offset += size
        return self.data[self.offset - size : self.offset]

    def number(self) -> int:
        return struct.unpack("<Q", self.take(8))[0]

    def string(self) -> bytes:
        return self.take(self.number())

    def text(self) -> str:
        return self.string().decode("utf-8")

    def expect_end(self) -> None:
        if self.offset != len(self.data):
            raise ValueError(f"{len(self.data) - self.offset} bytes left over at {self.offset}")


def string(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def counted(parts: Sequence[bytes]) -> bytes:
    """Write how many parts there are, then the parts."""
    return struct.pack("<Q", len(parts)) + b"".join(parts)

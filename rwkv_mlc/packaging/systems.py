"""The systems that a program can be packaged for, and the kinds of CPU that its code knows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Level:
    """A kind of CPU: ``options`` are those of the target ``llvm``."""

    name: str
    options: str


@dataclass(frozen=True)
class System:
    """``zig`` is zig's name of it, ``triple`` LLVM's; of ``levels``, best first, a program takes the first that its CPU has."""

    name: str
    zig: str
    triple: str
    levels: tuple[Level, ...]


SYSTEMS = {
    system.name: system
    for system in (
        System(
            "linux-x86_64",
            "x86_64-linux-musl",
            "x86_64-linux-musl",
            (
                Level("x86-64-v4-vnni", "-mcpu=x86-64-v4 -mattr=+avx512vnni"),
                Level("x86-64-v4", "-mcpu=x86-64-v4"),
                Level("x86-64-v3", "-mcpu=x86-64-v3"),
                Level("x86-64-v2", "-mcpu=x86-64-v2"),
            ),
        ),
    )
}

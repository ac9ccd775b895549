"""What a build tells while it works. Paths are those of the artifact, not of the folder that it is staged in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ..schema import LibraryRecord
from .convert import Conversion
from .precision import WideValue
from .source import Source

if TYPE_CHECKING:
    from ..compiler.targets import CompileTarget


@dataclass(frozen=True)
class TargetChosen:
    target: CompileTarget


@dataclass(frozen=True)
class SourceOpened:
    source: Source


@dataclass(frozen=True)
class WideValuesSought:
    """By reading a text with the reference, which takes a while."""


@dataclass(frozen=True)
class WideValuesFound:
    values: list[WideValue]


@dataclass(frozen=True)
class ParametersReused:
    folder: Path


@dataclass(frozen=True)
class ConversionStarted:
    """Of so many ``tensors`` to store in ``folder``."""

    folder: Path
    tensors: int


@dataclass(frozen=True)
class TensorStored:
    """The ``number``-th, from 1, of ``total`` stored tensors."""

    number: int
    total: int
    name: str
    nbytes: int


@dataclass(frozen=True)
class ConversionFinished:
    conversion: Conversion
    index: Path


@dataclass(frozen=True)
class ConfigWritten:
    file: Path


@dataclass(frozen=True)
class CompilationStarted:
    target: CompileTarget


@dataclass(frozen=True)
class LeftOutOfLibrary:
    """mlc_llm's functions, for a ``reason``."""

    reason: str


@dataclass(frozen=True)
class ArchitectureCompiled:
    """The ``number``-th, from 1, of ``total`` architectures of a GPU's code."""

    number: int
    total: int
    name: str


@dataclass(frozen=True)
class CompilationFinished:
    """``dumps`` are the files of ``debug_dump``."""

    library: LibraryRecord
    dumps: list[Path]


@dataclass(frozen=True)
class LibraryReused:
    prebuilt: Path


@dataclass(frozen=True)
class LibraryWritten:
    file: Path


@dataclass(frozen=True)
class BuildFinished:
    artifact: Path


Event: TypeAlias = (
    TargetChosen
    | SourceOpened
    | WideValuesSought
    | WideValuesFound
    | ParametersReused
    | ConversionStarted
    | TensorStored
    | ConversionFinished
    | ConfigWritten
    | CompilationStarted
    | LeftOutOfLibrary
    | ArchitectureCompiled
    | CompilationFinished
    | LibraryReused
    | LibraryWritten
    | BuildFinished
)
Observer: TypeAlias = Callable[[Event], None]


def silent(event: Event) -> None:
    """The observer of a build that nobody watches."""

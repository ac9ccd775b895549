"""An artifact's folder while it is written: what goes into it, and what an observer is told of that."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..artifact import PARAMS, LibraryRecord, staging
from ..artifact.names import TENSOR_INDEX
from ..config import RWKVConfig
from ..models import generation_of
from ..quantization.schemes import Scheme
from . import events
from .abi import ChosenAbi, check_state
from .configure import write_config
from .convert import Conversion, write_parameters
from .library import DEBUG, Prebuilt, compile_library
from .options import BuildOptions
from .source import Source

if TYPE_CHECKING:
    from ..compiler.targets import CompileTarget


@dataclass(frozen=True)
class Staged:
    """``folder`` is to take the place of the artifact ``final``, of whose files the observer is told."""

    folder: Path
    final: Path
    observe: events.Observer

    def convert(self, source: Source, scheme: Scheme, name: str) -> Conversion:
        """Raises UserError for a NaN or infinite weight."""
        parameters = generation_of(source.config).parameters(source.config)
        count = sum(len(scheme.stored(parameter)) for parameter in parameters)
        self.observe(events.ConversionStarted(self.final / PARAMS, count))
        conversion = write_parameters(
            source, scheme, name, self.folder, lambda *stored: self.observe(events.TensorStored(*stored))
        )
        self.observe(events.ConversionFinished(conversion, self.final / PARAMS / TENSOR_INDEX))
        return conversion

    def configure(self, source: Source, scheme: Scheme, name: str) -> Path:
        file = self._final(write_config(source, scheme, name, self.folder))
        self.observe(events.ConfigWritten(file))
        return file

    def compile(
        self, config: RWKVConfig, scheme: Scheme, target: CompileTarget, abi: ChosenAbi, options: BuildOptions
    ) -> LibraryRecord:
        """Raises UserError where a tool is missing."""
        self.observe(events.CompilationStarted(target))
        if abi.without_mlc is not None:
            self.observe(events.LeftOutOfLibrary(abi.without_mlc))
        library = self._with_final_path(
            compile_library(
                config,
                scheme,
                target,
                self.folder,
                options,
                abi.abi,
                lambda *compiled: self.observe(events.ArchitectureCompiled(*compiled)),
            )
        )
        dumps = sorted((self.folder / DEBUG).iterdir()) if options.debug_dump else []
        self.observe(events.CompilationFinished(library, [self._final(file) for file in dumps]))
        self.observe(events.LibraryWritten(library.path))
        return library

    def reuse(self, prebuilt: Prebuilt) -> LibraryRecord:
        self.observe(events.LibraryReused(prebuilt.record.path))
        library = self._with_final_path(prebuilt.add_to(self.folder))
        self.observe(events.LibraryWritten(library.path))
        return library

    def _final(self, file: Path) -> Path:
        return self.final / file.relative_to(self.folder)

    def _with_final_path(self, library: LibraryRecord) -> LibraryRecord:
        return library.model_copy(update={"path": self._final(library.path)})


@contextlib.contextmanager
def staged(final: Path, keep: Callable[[str], bool] | None, observe: events.Observer) -> Iterator[Staged]:
    """As ``artifact.staging``. Raises UserError where the artifact's state is not that of its libraries."""
    with staging(final, keep) as folder:
        yield Staged(folder, final, observe)
        check_state(folder)

"""An artifact's library for a target: compiled here, or taken from an artifact of the same shape."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..artifact import Artifact, BuildRecord, LibraryRecord, add_library, library_name, package_versions
from ..artifact.names import BUILD_RECORD, OBJECTS, system_lib_prefix
from ..config import RWKVConfig
from ..errors import UserError
from ..quantization.schemes import Scheme
from ..schema import INTERFACES_OF, Abi
from .options import BuildOptions

if TYPE_CHECKING:
    from ..compiler.targets import CompileTarget

DEBUG = "debug"  # the folder of an artifact that holds the module after every phase


def choose_target(text: str, scheme: Scheme, options: BuildOptions) -> CompileTarget:
    """The target that a user named, before anything takes time. Raises UserError for an unknown one, where a tool for it is
    missing, and for activations that it or the scheme does not have."""
    from ..compiler.link import check_tools
    from ..compiler.targets import resolve_target
    from ..graph.model import check_activations

    target = resolve_target(text, options.mcpu)
    if options.prefill_activations:
        check_activations(options.prefill_activations, scheme, target, options.family)
    check_tools(target, _suffix(target, options))
    return target


def compile_library(
    config: RWKVConfig,
    scheme: Scheme,
    target: CompileTarget,
    folder: Path,
    options: BuildOptions,
    abi: Abi,
    progress: Callable[[int, int, str], None] | None = None,
) -> LibraryRecord:
    """Compile an artifact's library for a target and add it to ``folder``, in place of an older one for that target.

    The symbols of a ``system_lib`` begin with the artifact's name; ``progress`` is that of ``export_library``. Raises
    UserError where a tool is missing and when the disk is full."""
    from ..compiler.link import export_library
    from ..compiler.pipeline import compile_module
    from ..graph.model import best_activations
    from ..interfaces.module import build_module

    activations = options.prefill_activations or best_activations(scheme, target, options.family)
    name, suffix = BuildRecord.read(folder).name, _suffix(target, options)
    module = build_module(config, scheme, target, activations, options.family, INTERFACES_OF[abi])
    if suffix == OBJECTS:
        module = module.with_attr("system_lib_prefix", system_lib_prefix(name))
    executable = compile_module(module, target, folder / DEBUG if options.debug_dump else None)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        built = Path(scratch) / library_name(name, target.name, suffix)
        export_library(executable, target, built, progress)
        if target.device == "cpu":
            _make_threads_ready()
        features = list(target.features)
        return add_library(folder, built, target.name, target.attributes, features, activations, options.family, abi)


def _make_threads_ready() -> None:
    """Build the thread pool here, where there is a C++ compiler, which the machine that runs the library may lack."""
    from ..engine.threads import LIBRARY

    with contextlib.suppress(UserError):  # the engine, which can do without, says why
        LIBRARY.build()


def _suffix(target: CompileTarget, options: BuildOptions) -> str:
    return OBJECTS if options.system_lib else target.suffix


@dataclass(frozen=True)
class Prebuilt:
    """A library of another artifact of the same shape, which is for the target of this name."""

    target_name: str
    record: LibraryRecord

    @classmethod
    def of(cls, path: Path, config: RWKVConfig, scheme: Scheme) -> Prebuilt:
        """Raises UserError where it does not fit."""
        if not (path.parent / BUILD_RECORD).is_file():
            raise UserError(f"{path} lies in no artifact; name a library inside a folder written by rwkv-mlc build.")
        artifact = Artifact.open(path.parent)
        targets = [target for target, library in artifact.libraries().items() if library.path.name == path.name]
        if not targets:
            raise UserError(f"{path} is not in its artifact's build record; name one of the libraries in there.")
        library, versions = artifact.library(targets[0]), package_versions()
        same_length = dataclasses.replace(artifact.config, context_length=config.context_length)
        if same_length != config or artifact.scheme != scheme:
            raise UserError(f"{path} was compiled for another model shape or scheme; leave --reuse-lib out to compile.")
        if any(library.versions.get(package) != versions.get(package) for package in ("rwkv_mlc", "apache-tvm")):
            raise UserError(f"{path} is by other versions of rwkv_mlc or TVM; leave --reuse-lib out to compile.")
        return cls(targets[0], library)

    def add_to(self, folder: Path) -> LibraryRecord:
        """Add a copy to the artifact ``folder``."""
        record = self.record
        described = record.target, record.cpu_features, record.prefill_activations, record.family, record.abi
        return add_library(folder, record.path, self.target_name, *described)

"""A program with a model in it: one static executable, with the weights at its end or beside it."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from ..artifact import Artifact
from ..artifact.disk import beside, check_output, writing
from ..artifact.names import OBJECTS
from ..errors import UserError
from ..schema import ParameterSpec
from ..tokenizer import Tokenizer, load_tokenizer
from . import runner
from .pack import LevelCode, PackWriter
from .systems import SYSTEMS, Level, System
from .zig import check_zig, zig

Weights: TypeAlias = Literal["inside", "beside"]
STACK = 8 << 20  # bytes of every thread's stack; musl's own choice is too small for kernels


@dataclass(frozen=True)
class Packaged:
    """``program`` is the executable, ``weights`` the file beside it, None where they are inside; ``code_bytes`` is the size of
    the executable without them."""

    program: Path
    weights: Path | None
    code_bytes: int


def package(
    artifact: Path | str,
    to: str,
    out: Path | str = "rwkv-chat",
    weights: Weights = "inside",
    levels: Sequence[str] | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> Packaged:
    """Write the program ``out`` for a system of ``SYSTEMS`` that runs the model of an artifact, with the code for ``levels`` of
    its CPUs, all where not given. ``progress`` is told of every step.

    Raises UserError for an artifact or a system that cannot be packaged, for a tool that is missing and for a full disk; what
    was there under the name ``out`` is then as it was."""
    system, program = _system(to), Path(out)
    chosen = _levels(system, levels)
    check_zig()
    check_output(program)
    opened = Artifact.open(artifact)
    tokenizer = load_tokenizer(opened.tokenizer_files)
    if tokenizer.kind != "world":
        raise UserError(
            f"{opened.path} has the vocabulary {tokenizer.files[0].name}, and packaged programs know those of the World format "
            "alone; run it with rwkv-mlc chat."
        )
    tokenizer.valid_ids(opened.config.vocab_size)
    archives = [runner.runtime().build(system), runner.runner().build(system)]
    with writing(program), tempfile.TemporaryDirectory(dir=program.resolve().parent) as scratch:
        folder = Path(scratch)
        codes: list[LevelCode] = []
        objects: list[Path] = []
        for level in chosen:
            progress(f"compiling for {level.name}")
            code, compiled, parameters = _compile(opened, system, level, folder / level.name)
            codes.append(code)
            objects += compiled
        progress("linking")
        linked = folder / "program"
        _link(system, archives, objects, linked)
        code_bytes = linked.stat().st_size
        progress("writing the weights")
        written = _write(linked, program, weights, opened, tokenizer, parameters, codes)
        return Packaged(program, written, code_bytes)


def _system(name: str) -> System:
    if name not in SYSTEMS:
        raise UserError(f"There is no system {name}; a model is packaged for {' or '.join(SYSTEMS)}.")
    return SYSTEMS[name]


def _levels(system: System, names: Sequence[str] | None) -> list[Level]:
    known = {level.name: level for level in system.levels}
    if unknown := [name for name in names or () if name not in known]:
        raise UserError(f"{system.name} has no level {unknown[0]}; it has {', '.join(known)}.")
    return [level for name, level in known.items() if names is None or name in names]


def _compile(
    artifact: Artifact, system: System, level: Level, folder: Path
) -> tuple[LevelCode, list[Path], Sequence[ParameterSpec]]:
    """The objects of the library for a kind of CPU, whose functions have names of their own in the program, and the tensors
    that they take."""
    from ..compiler.link import export_library
    from ..compiler.pipeline import compile_module
    from ..compiler.targets import resolve_target
    from ..graph.model import GraphModel, best_activations
    from ..interfaces.module import build_module

    config, scheme = artifact.config, artifact.scheme
    target = resolve_target(f"llvm -mtriple={system.triple} {level.options}")
    activations = best_activations(scheme, target)
    model = GraphModel(config, scheme, target, activations)
    identity = hashlib.sha256(f"{artifact.record.source_sha256} {scheme.name} {config}".encode()).hexdigest()[:8]
    prefix = re.sub(r"\W", "_", f"rwkv_{identity}_{level.name}_")
    module = build_module(config, scheme, target, activations).with_attr("system_lib_prefix", prefix)
    folder.mkdir()
    packed = folder / f"library{OBJECTS}"
    export_library(compile_module(module, target), target, packed)
    with tarfile.open(packed) as archive:
        archive.extractall(folder, filter="data")
    parameters = [
        ParameterSpec(name=t.name, shape=t.shape, dtype=t.dtype, layout=t.layout, stored_shape=t.stored_shape)
        for t in model.tensors
    ]
    return LevelCode(level.name, prefix, target.features), sorted(folder.glob("*.o")), parameters


def _link(system: System, archives: Sequence[Path], objects: Sequence[Path], out: Path) -> None:
    zig(
        *("c++", "-target", system.zig, "-static", "-o", out, *objects),
        *("-Wl,--whole-archive", *archives, "-Wl,--no-whole-archive"),  # what registers itself is called by nobody
        *("-Wl,--gc-sections", "-Wl,-s", f"-Wl,-z,stack-size={STACK}"),
    )


def _write(
    linked: Path,
    program: Path,
    weights: Weights,
    artifact: Artifact,
    tokenizer: Tokenizer,
    parameters: Sequence[ParameterSpec],
    codes: Sequence[LevelCode],
) -> Path | None:
    """Put the program where it belongs, with the weights at its end or in a file beside it, which is returned."""
    given = artifact, tokenizer, parameters, codes, runner.licenses()
    apart = program.with_name(f"{program.name}.weights") if weights == "beside" else None
    if apart:
        with beside(apart) as partial, open(partial, "wb") as file:
            PackWriter(file).write(*given)
    with beside(program) as partial:
        shutil.copyfile(linked, partial)
        if apart is None:
            with open(partial, "ab") as file:
                PackWriter(file).write(*given)
        partial.chmod(0o777 & ~_umask())
    return apart


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

"""``build`` and its three parts, each with what it checks, reuses and stages.

Every one writes into a folder that ``artifact.staging`` gives, so that an artifact changes as a whole or not at all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..artifact import CHAT_CONFIG, PARAMS, Artifact, BuildRecord, LibraryRecord, artifact_name
from ..artifact.finding import ARTIFACTS
from ..artifact.names import BUILD_RECORD, CONFIG_FILES, INITIAL_STATE, check_artifact_name
from ..errors import UserError
from ..escaping import quoted
from ..quantization.schemes import DEFAULT_SCHEME, Scheme, get_scheme
from ..weights.checkpoint import Checkpoint
from ..weights.lora import merged
from ..weights.random import RANDOM
from . import events
from .abi import choose_abi
from .convert import Conversion, matching_parameters
from .events import Observer, silent
from .library import Prebuilt, choose_target
from .options import BuildOptions
from .source import Source, find_checkpoint, is_download
from .staged import Staged, staged

if TYPE_CHECKING:
    from ..compiler.targets import CompileTarget

MODELS = "models"  # the folder of checkpoints among the artifacts


@dataclass(frozen=True)
class Built:
    """An artifact's folder and what a build has done there: no ``conversion`` where the parameters that were there still
    hold, no ``library`` where none was asked for."""

    path: Path
    conversion: Conversion | None
    library: LibraryRecord | None


def build(
    model: str | Path,
    target: str = "auto",
    quantization: str = DEFAULT_SCHEME,
    artifact_path: str | Path = ARTIFACTS,
    options: BuildOptions = BuildOptions(),
    *,
    only: Literal["weights", "library"] | None = None,
    use_cache: bool = True,
    reuse_lib: str | Path | None = None,
    observe: Observer = silent,
) -> Built:
    """Build the artifact ``<artifact_path>/<model>-<quantization>``, or of the options' name: convert a checkpoint, configure,
    compile.

    ``model`` is a checkpoint's file or folder, a name below ``<artifact_path>/models``, a hub repository, or, with a
    ``random_seed``, a preset. ``target`` is ``auto`` for this machine's best device, a name of
    ``compiler.targets.TARGETS`` with TVM's options, or a TVM target as JSON; libraries of the artifact for other targets
    stay. ``only`` leaves the library out, or adds it to an artifact that is there. Parameters that are there already are
    kept unless ``use_cache`` is false. ``reuse_lib`` is a library of an artifact of the same shape, to be taken instead of
    compiling one. ``observe`` is told every step.

    Raises UserError for a wrong argument, checkpoint or target, for an artifact of that name from another checkpoint, for a
    tool that is missing and for a disk that is full, and leaves the artifact that was there as it was."""
    if only not in (None, "weights", "library"):
        raise UserError(
            f"A build is of the weights only, of the library only, or of both (None), not of {quoted(only)}."
        )
    artifacts, scheme = Path(artifact_path), get_scheme(quantization)
    if reuse_lib and options.prefill_activations:
        raise UserError("--reuse-lib adds a library as it was compiled; leave --prefill-activations out.")
    if reuse_lib and options.abi:
        raise UserError("--reuse-lib adds a library as it was compiled; leave --abi out.")
    if reuse_lib and options.family != "fused":
        raise UserError("--reuse-lib adds a library as it was compiled; leave --family out.")
    chosen = prebuilt = None
    open_source = partial(_open_source, model, artifacts / MODELS, scheme, options)
    source = None if is_download(str(model), artifacts / MODELS, options) else open_source()
    if only != "weights" and not reuse_lib:
        chosen = _choose_target(target, scheme, options, observe)
    source = source or open_source()
    observe(events.SourceOpened(source))
    if options.auto_precision:
        source = _with_wide_values(source, scheme, target, options, observe)
    name = options.artifact_name or artifact_name(source.checkpoint.name, scheme.name)
    final = artifacts / name
    _check_output(final)
    if only == "library" and (Artifact.open(final).config != source.config or _other_source(final, source)):
        raise UserError(f"{final} holds another model than {source.checkpoint.name}; leave --build-model-only out.")
    _check_source(final, source, options, "give --artifact-name NAME to build another")

    if chosen:
        tuned_state = options.state is not None if only != "library" else _has_state(final)
        abi = choose_abi(source.config, scheme, chosen, tuned_state, options)
    if only != "weights" and reuse_lib:
        prebuilt = Prebuilt.of(Path(reuse_lib), source.config, scheme)
    conversion = library = None
    reuse = only != "library" and use_cache and matching_parameters(final, source, scheme)
    keep = _is_any if only == "library" else _is_no_config if reuse else None
    with staged(final, keep, observe) as stage:
        if reuse:
            observe(events.ParametersReused(final / PARAMS))
        elif only != "library":
            conversion = stage.convert(source, scheme, name)
        if only != "library":
            stage.configure(source, scheme, name)
        if prebuilt:
            library = stage.reuse(prebuilt)
        elif chosen:
            library = stage.compile(source.config, scheme, chosen, abi, options)
    observe(events.BuildFinished(final))
    return Built(final, conversion, library)


def convert_weight(
    model: str | Path,
    folder: Path,
    quantization: str = DEFAULT_SCHEME,
    options: BuildOptions = BuildOptions(),
    observe: Observer = silent,
) -> Conversion:
    """Write the parameters and the build record of the artifact ``folder``, in place of what else is there. Raises UserError
    as ``build``."""
    scheme = get_scheme(quantization)
    with _opened(model, folder, scheme, _is_config, options, observe) as (source, stage):
        return stage.convert(source, scheme, folder.resolve().name)


def gen_config(
    model: str | Path,
    folder: Path,
    quantization: str = DEFAULT_SCHEME,
    options: BuildOptions = BuildOptions(),
    observe: Observer = silent,
) -> Path:
    """Write the tokenizer's files and ``mlc-chat-config.json`` of the artifact ``folder``; returns the latter. Raises
    UserError as ``build``."""
    scheme = get_scheme(quantization)
    with _opened(model, folder, scheme, _is_no_config, options, observe) as (source, stage):
        return stage.configure(source, scheme, folder.resolve().name)


def compile_artifact(
    folder: Path, target: str = "auto", options: BuildOptions = BuildOptions(), observe: Observer = silent
) -> LibraryRecord:
    """Add the library for a target to the artifact ``folder``. Raises UserError as ``build``."""
    artifact = Artifact.open(folder)
    BuildRecord.read(artifact.path)  # a damaged one is refused where the user has it
    chosen = _choose_target(target, artifact.scheme, options, observe)
    abi = choose_abi(artifact.config, artifact.scheme, chosen, _has_state(artifact.path), options)
    with staged(artifact.path, _is_any, observe) as stage:
        return stage.compile(artifact.config, artifact.scheme, chosen, abi, options)


@contextlib.contextmanager
def _opened(
    model: str | Path,
    folder: Path,
    scheme: Scheme,
    keep: Callable[[str], bool],
    options: BuildOptions,
    observe: Observer,
) -> Iterator[tuple[Source, Staged]]:
    """What a step of its own works with: the checkpoint, and the artifact ``folder`` while it is written. Nothing is kept of
    an artifact of another checkpoint."""
    source = _open_source(model, ARTIFACTS / MODELS, scheme, options)
    observe(events.SourceOpened(source))
    _check_output(folder)
    _check_source(folder, source, options, "name another folder with -o")
    with staged(folder, None if _other_source(folder, source) else keep, observe) as stage:
        yield source, stage


def _choose_target(text: str, scheme: Scheme, options: BuildOptions, observe: Observer) -> CompileTarget:
    target = choose_target(text, scheme, options)
    observe(events.TargetChosen(target))
    return target


def _open_source(model: str | Path, models_dir: Path, scheme: Scheme, options: BuildOptions) -> Source:
    checkpoint = find_checkpoint(str(model), models_dir, random_seed=options.random_seed, revision=options.revision)
    if checkpoint.quantization is not None:
        _check_converted(checkpoint, scheme, options)
    if options.lora is not None:
        checkpoint = merged(checkpoint, Path(options.lora), options.lora_alpha)
    return Source.of(checkpoint, options)


def _check_converted(checkpoint: Checkpoint, scheme: Scheme, options: BuildOptions) -> None:
    """Raises UserError for a wish that parameters which were converted before do not fulfill."""
    again = "build from the checkpoint that it was converted from"
    if scheme.name != checkpoint.quantization:
        raise UserError(
            f"{checkpoint.source} was converted in {checkpoint.quantization}, from which there is no exact way to "
            f"{scheme.name}; take --quantization {checkpoint.quantization}, or {again}."
        )
    if options.lora is not None:
        raise UserError(f"{checkpoint.source} was converted before, so that no LoRA can be merged into it; {again}.")
    if options.rescale_every not in (None, checkpoint.rescale_every):
        raise UserError(
            f"{checkpoint.source} was converted with rescale_every {checkpoint.rescale_every}; leave --rescale-every out, or "
            f"{again}."
        )


def _with_wide_values(source: Source, scheme: Scheme, target: str, options: BuildOptions, observe: Observer) -> Source:
    """The source with what ``target`` should keep in float32."""
    from ..compiler.targets import resolve_target

    observe(events.WideValuesSought())
    found = source.wide_values(scheme, resolve_target(target, options.mcpu))
    observe(events.WideValuesFound(found))
    return source.with_float32(value.name for value in found)


def _has_state(artifact: Path) -> bool:
    return (artifact / PARAMS / INITIAL_STATE).exists()


def _is_any(file: str) -> bool:
    return True


def _is_config(file: str) -> bool:
    """Whether a file of an artifact is one that ``gen_config`` writes."""
    return file in CONFIG_FILES


def _is_no_config(file: str) -> bool:
    return not _is_config(file)


def _check_output(folder: Path) -> None:
    """Raises UserError where an artifact would take the place of something else."""
    check_artifact_name(folder.resolve().name)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name another folder for the artifact.")
    marks = (BUILD_RECORD, f"{PARAMS}/{CHAT_CONFIG}")
    if folder.exists() and any(folder.iterdir()) and not any((folder / mark).is_file() for mark in marks):
        raise UserError(f"{folder} holds other files and no artifact; name a new folder, so that they stay.")


def _check_source(folder: Path, source: Source, options: BuildOptions, advice: str) -> None:
    """Raises UserError where an artifact of another checkpoint is there and may not be overwritten, and where the checkpoint
    itself is, as in the folder that mlc_chat's build wrote."""
    if any(file.resolve().is_relative_to(folder.resolve()) for file in source.checkpoint.files):
        raise UserError(f"{folder} holds {source.checkpoint.source} itself, which would be lost; {advice}.")
    other = _other_source(folder, source)
    if other and not options.overwrite:
        raise UserError(
            f"{folder} was built from {other.source} (SHA-256 {other.source_sha256[:12]}...), not from "
            f"{source.checkpoint.source} ({source.sha256[:12]}...); {advice}, or --overwrite to replace it."
        )


def _other_source(folder: Path, source: Source) -> BuildRecord | None:
    """The record of an artifact that was built from another checkpoint than the source; random weights are no loss."""
    try:
        record = BuildRecord.read(folder)
    except UserError:  # none, or one that says nothing any more
        return None
    random = record.source_format == source.checkpoint.format == RANDOM
    return None if random or record.source_sha256 == source.sha256 else record

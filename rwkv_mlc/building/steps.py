"""Checkpoint in, artifact out: the steps of ``build``, each also a command of its own.

Every step writes into a folder that ``artifact.staging`` gives, so that an artifact changes as a whole or not at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import reference
from ..artifact import (
    CHAT_CONFIG,
    PARAMS,
    Artifact,
    BuildRecord,
    LibraryRecord,
    add_library,
    chat_config,
    library_name,
    package_versions,
    write_json,
)
from ..artifact.names import BUILD_RECORD, CONFIG_FILES, OBJECTS, system_lib_prefix
from ..artifact.shards import read_index, verify
from ..config import RWKVConfig
from ..data_files import ROOT, config_names
from ..engine.templates import Template, load_template
from ..errors import UserError
from ..models import ModelOptions, generation_of, resolve
from ..quantization.schemes import Scheme
from ..tokenizer import find_vocabulary, load_tokenizer, write_tokenizer_files
from ..weights import open_checkpoint
from ..weights.checkpoint import Checkpoint
from ..weights.random import load_preset, random_checkpoint
from .convert import Conversion, convert_weights
from .precision import WideValue, wide_values

if TYPE_CHECKING:
    from ..compiler.targets import CompileTarget
    from ..graph.model import Activations

PREFILL_CHUNK = 512  # tokens; activations of one call stay below 50 MB for a 7B model


@dataclass(frozen=True)
class Source:
    """A checkpoint with what was found out about it before anything is written."""

    checkpoint: Checkpoint
    options: ModelOptions
    config: RWKVConfig
    vocabulary: list[Path]
    template: Template

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        options: ModelOptions = ModelOptions(),
        tokenizer: Path | None = None,
        template: str | None = None,
    ) -> Source:
        """Raises UserError for an unknown generation, wrong tensors, no or a wrong vocabulary, an unknown template."""
        config, _, _ = resolve(checkpoint, options)
        vocabulary = find_vocabulary(checkpoint, config, tokenizer)
        kind = load_tokenizer(vocabulary).kind
        chat = load_template(template or generation_of(config).template(kind))
        return cls(checkpoint, options, config, vocabulary, chat)

    @cached_property
    def sha256(self) -> str:
        return self.checkpoint.sha256()

    def with_float32(self, patterns: Iterable[str]) -> Source:
        """The same with ``RWKVConfig.float32`` patterns added."""
        config = self.config.with_float32(patterns)
        options = dataclasses.replace(self.options, float32=config.float32)
        return dataclasses.replace(self, options=options, config=config)

    def wide_values(self, scheme: Scheme, target: CompileTarget) -> list[WideValue]:
        """What would leave float16's range, or come near it, on ``target`` while the model reads ``configs/calibration.txt``.
        Takes the model's size in float32 of memory."""
        from ..interfaces.module import float16_values

        if not (narrow := float16_values(self.config, scheme, target)):
            return []
        config, parameters = reference.load(self.checkpoint, np.float32, self.options)
        return wide_values(config, parameters, self._calibration(), narrow)

    def _calibration(self) -> list[int]:
        """The text's lines as far as the vocabulary has their characters; some tokens of it where it has none of them."""
        tokenizer, tokens = load_tokenizer(self.vocabulary), []
        for line in (ROOT / "calibration.txt").read_text(encoding="utf-8").splitlines(keepends=True):
            with contextlib.suppress(UserError):
                tokens += tokenizer.encode(line)
        return tokens or list(range(min(64, self.config.vocab_size)))


def open_source(
    model: str,
    *,
    models_dir: Path,
    random_seed: int | None = None,
    revision: str | None = None,
) -> Checkpoint:
    """The checkpoint a user named: a path, a name below ``models_dir``, a hub repository, or, with a seed, a preset.

    Raises UserError when there is nothing of that name."""
    if random_seed is not None:
        return random_checkpoint(load_preset(model), model, random_seed)
    local = models_dir / model
    source = str(local) if not Path(model).exists() and local.exists() else model
    if source in config_names("models") and not Path(source).exists():
        raise UserError(f"{model} is a preset, which has no weights of its own; add --random-weights to draw some.")
    return open_checkpoint(source, revision=revision)


def is_config(name: str) -> bool:
    """Whether a file of an artifact is one that ``write_config`` writes."""
    return name in CONFIG_FILES


def is_no_config(name: str) -> bool:
    return not is_config(name)


def check_output(folder: Path) -> None:
    """Raises UserError where an artifact would take the place of something else."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name another folder for the artifact.")
    marks = (BUILD_RECORD, f"{PARAMS}/{CHAT_CONFIG}")
    if folder.exists() and any(folder.iterdir()) and not any((folder / mark).is_file() for mark in marks):
        raise UserError(f"{folder} holds other files and no artifact; name a new folder, so that they stay.")


def matching_parameters(folder: Path, source: Source, scheme: Scheme) -> bool:
    """Whether an artifact in ``folder`` already holds this checkpoint's parameters in this scheme, undamaged."""
    try:
        record = BuildRecord.read(folder)
        verify(folder / PARAMS, read_index(folder / PARAMS))
    except UserError:
        return False
    return record.params_match(source.sha256, source.config, scheme)


def write_parameters(
    source: Source,
    scheme: Scheme,
    name: str,
    folder: Path,
    progress: Callable[[int, int, str, int], None] | None = None,
) -> Conversion:
    """Write the shards and a build record into ``folder``. Raises UserError for a NaN or infinite weight."""
    conversion = convert_weights(source.checkpoint, scheme, folder / PARAMS, source.options, progress=progress)
    BuildRecord.of(name, source.checkpoint, source.sha256, source.config, scheme).write(folder)
    return conversion


def write_config(source: Source, scheme: Scheme, name: str, folder: Path) -> Path:
    """Write tokenizer files and ``mlc-chat-config.json`` into ``folder``; returns the latter's path."""
    params = folder / PARAMS
    params.mkdir(parents=True, exist_ok=True)
    files = write_tokenizer_files(source.vocabulary, params, source.config.vocab_size)
    active = load_tokenizer(source.vocabulary).max_id + 1
    config = chat_config(
        source.config, generation_of(source.config), scheme, name, source.template, files, active, PREFILL_CHUNK
    )
    write_json(params / CHAT_CONFIG, config.to_dict())
    return params / CHAT_CONFIG


def compile_library(
    config: RWKVConfig,
    scheme: Scheme,
    target_text: str,
    folder: Path,
    *,
    mcpu: str | None = None,
    dump_dir: Path | None = None,
    system_lib: bool = False,
    prefill_activations: Activations = "float32",
    progress: Callable[[int, int, str], None] | None = None,
) -> LibraryRecord:
    """Compile an artifact's library for a target and add it to ``folder``, in place of an older one for that target.

    ``dump_dir`` gets the module after every phase; ``prefill_activations`` is that of ``build_module``, ``progress`` that of
    ``export_library``; ``system_lib`` asks for object files, whose symbols begin with the artifact's name, as ``.tar``.
    Raises UserError for an unknown target, one that has no such activations, where a tool is missing, and when the disk is
    full."""
    from ..compiler.link import export_library
    from ..compiler.pipeline import compile_module
    from ..compiler.targets import resolve_target
    from ..interfaces.module import build_module

    target = resolve_target(target_text, mcpu)
    suffix = OBJECTS if system_lib else target.suffix
    name = BuildRecord.read(folder).name
    module = build_module(config, scheme, target, prefill_activations)
    if suffix == OBJECTS:
        module = module.with_attr("system_lib_prefix", system_lib_prefix(name))
    executable = compile_module(module, target, dump_dir)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        built = Path(scratch) / library_name(name, target.name, suffix)
        export_library(executable, target, built, progress)
        return add_library(folder, built, target.name, target.attributes, list(target.features), prefill_activations)


def reuse_library(prebuilt: Path, config: RWKVConfig, scheme: Scheme, folder: Path) -> LibraryRecord:
    """Add a library of another artifact of the same shape to ``folder``. Raises UserError where it does not fit."""
    if not (prebuilt.parent / BUILD_RECORD).is_file():
        raise UserError(f"{prebuilt} lies in no artifact; name a library inside a folder written by rwkv-mlc build.")
    artifact = Artifact.open(prebuilt.parent)
    targets = [target for target, library in artifact.libraries().items() if library.path.name == prebuilt.name]
    if not targets:
        raise UserError(f"{prebuilt} is not in its artifact's build record; name one of the libraries in there.")
    library, versions = artifact.library(targets[0]), package_versions()
    same_length = dataclasses.replace(artifact.config, context_length=config.context_length)
    if same_length != config or artifact.scheme != scheme:
        raise UserError(f"{prebuilt} was compiled for another model shape or scheme; leave --reuse-lib out to compile.")
    if any(library.versions.get(package) != versions.get(package) for package in ("rwkv_mlc", "apache-tvm")):
        raise UserError(f"{prebuilt} is by other versions of rwkv_mlc or TVM; leave --reuse-lib out to compile.")
    return add_library(folder, prebuilt, targets[0], library.target, library.cpu_features, library.prefill_activations)

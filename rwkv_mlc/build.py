"""Checkpoint in, artifact out: the steps of ``build``, each also a command of its own."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .artifact import (
    CHAT_CONFIG,
    PARAMS,
    BuildRecord,
    LibraryRecord,
    add_library,
    chat_config,
    library_name,
    write_json,
)
from .artifact.disk import read_json
from .artifact.names import TENSOR_INDEX
from .config import RWKVConfig
from .configs import config_names
from .convert import Conversion, convert_weights
from .engine.templates import Template, default_template, load_template
from .errors import UserError
from .models import resolve
from .quantization.schemes import Scheme, get_scheme
from .tokenizer import find_vocabulary, load_tokenizer, write_tokenizer_files
from .weights import open_checkpoint
from .weights.checkpoint import Checkpoint
from .weights.random import load_preset, random_checkpoint

PREFILL_CHUNK = 512  # tokens; activations of one call stay below 50 MB for a 7B model


@dataclass(frozen=True)
class Source:
    """A checkpoint with what was found out about it before anything is written."""

    checkpoint: Checkpoint
    config: RWKVConfig
    vocabulary: list[Path]
    template: Template

    @classmethod
    def of(cls, checkpoint: Checkpoint, tokenizer: Path | None = None, template: str | None = None) -> Source:
        """Raises UserError for an unknown generation, wrong tensors, no or a wrong vocabulary, an unknown template."""
        config, _, _ = resolve(checkpoint)
        vocabulary = find_vocabulary(checkpoint, config, tokenizer)
        kind = load_tokenizer(vocabulary).kind
        return cls(checkpoint, config, vocabulary, load_template(template) if template else default_template(config, kind))

    @cached_property
    def sha256(self) -> str:
        return self.checkpoint.sha256()


def open_source(
    model: str,
    *,
    models_dir: Path,
    random_seed: int | None = None,
    head_size_divisor: int | None = None,
    context_length: int | None = None,
    revision: str | None = None,
) -> Checkpoint:
    """The checkpoint a user named: a path, a name below ``models_dir``, a hub repository, or with ``random_seed`` a preset.

    Raises UserError when there is nothing of that name."""
    if random_seed is not None:
        checkpoint = random_checkpoint(load_preset(model), model, random_seed)
    else:
        local = models_dir / model
        source = str(local) if not Path(model).exists() and local.exists() else model
        if source in config_names("models") and not Path(source).exists():
            raise UserError(f"{model} is a preset, which has no weights of its own; add --random-weights to draw some.")
        checkpoint = open_checkpoint(source, head_size_divisor, revision)
    if head_size_divisor is not None:
        checkpoint.head_size_divisor = head_size_divisor
    if context_length is not None:
        checkpoint.context_length = context_length
    return checkpoint


def write_config(source: Source, scheme: Scheme, name: str, params_dir: Path) -> Path:
    """Write tokenizer files and ``mlc-chat-config.json``; returns the latter's path."""
    params_dir.mkdir(parents=True, exist_ok=True)
    files = write_tokenizer_files(source.vocabulary, params_dir, source.config.vocab_size)
    active = load_tokenizer(source.vocabulary).max_id + 1
    config = chat_config(source.config, scheme, name, source.template.to_dict(), files, active, PREFILL_CHUNK)
    write_json(params_dir / CHAT_CONFIG, config)
    return params_dir / CHAT_CONFIG


def convert(
    source: Source, scheme: Scheme, name: str, folder: Path, progress: Callable[[int, int, str, int], None] | None = None
) -> Conversion:
    """Write parameters, tokenizer, chat config and build record into ``folder``."""
    conversion = convert_weights(source.checkpoint, scheme, folder / PARAMS, progress=progress)
    write_config(source, scheme, name, folder / PARAMS)
    BuildRecord.of(name, source.checkpoint, source.sha256, source.config, scheme).write(folder)
    return conversion


def compile_library(
    config: RWKVConfig,
    scheme: Scheme,
    target_text: str,
    folder: Path,
    *,
    mcpu: str | None = None,
    dump_dir: Path | None = None,
    system_lib: bool = False,
) -> LibraryRecord:
    """Compile the library of an artifact for a target and add it to ``folder``. Raises UserError for an unknown target,
    where there is no linker, and when the disk is full."""
    from .compiler.graph import build_module
    from .compiler.link import export_library
    from .compiler.pipeline import compile_module
    from .compiler.targets import resolve_target

    target = resolve_target(target_text, mcpu)
    name = BuildRecord.read(folder).name
    module = build_module(config, scheme, target)
    if system_lib:
        module = module.with_attr("system_lib_prefix", re.sub(r"\W", "_", name) + "_")
    executable = compile_module(module, target, dump_dir, system_lib)
    with tempfile.TemporaryDirectory() as scratch:
        suffix = ".tar" if system_lib else target.suffix
        built = Path(scratch) / library_name(name, target.name, suffix)
        export_library(executable, target, built)
        return add_library(folder, built, target.name, target.attributes, list(target.features))


def reuse_library(prebuilt: Path, config: RWKVConfig, scheme: Scheme, folder: Path) -> LibraryRecord:
    """Add a library of another artifact of the same model shape to ``folder``. Raises UserError where it does not fit."""
    record = BuildRecord.read(prebuilt.parent)
    for target, library in record.libraries.items():
        if library.path.name == prebuilt.name:
            break
    else:
        raise UserError(f"{prebuilt} is in no artifact's build record; name a library inside an artifact folder.")
    settings = read_json(prebuilt.parent / PARAMS / CHAT_CONFIG)
    theirs = dataclasses.replace(RWKVConfig.from_dict(settings["model_config"]), context_length=config.context_length)
    if theirs != config or settings["quantization"] != scheme.name:
        raise UserError(f"{prebuilt} was compiled for another model shape or scheme; leave --reuse-lib out to compile.")
    return add_library(folder, prebuilt, target, library.target, library.cpu_features)


def artifact_config(folder: Path) -> tuple[RWKVConfig, Scheme]:
    """Model shape and scheme of an artifact, from its chat config. Raises UserError where there is none."""
    path = folder / PARAMS / CHAT_CONFIG
    if not path.is_file():
        raise UserError(f"{folder} is no artifact: it has no {PARAMS}/{CHAT_CONFIG}; name a folder written by rwkv-mlc build.")
    settings = read_json(path)
    return RWKVConfig.from_dict(settings.get("model_config", {})), get_scheme(str(settings.get("quantization")))


def matching_parameters(folder: Path, source: Source, scheme: Scheme) -> bool:
    """Whether an artifact in ``folder`` already holds this checkpoint's parameters in this scheme."""
    try:
        record = BuildRecord.read(folder)
    except UserError:
        return False
    if not (folder / PARAMS / TENSOR_INDEX).is_file():
        return False
    return record.params_match(source.sha256, source.config, scheme)


"""Finding the checkpoint that a user names, and what is to be known of it before anything is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import reference
from ..artifact import is_artifact
from ..config import RWKVConfig
from ..data_files import config_names
from ..engine.templates import Template, load_template
from ..errors import UserError
from ..models import ModelOptions, generation_of, resolve
from ..quantization.schemes import Scheme
from ..special_tokens import SpecialTokens
from ..tokenizer import END_OF_TEXT, Tokenizer, find_vocabulary, load_tokenizer
from ..weights import is_on_hub, open_checkpoint
from ..weights.checkpoint import Checkpoint
from ..weights.huggingface import holds_weights
from ..weights.random import load_preset, random_checkpoint
from ..weights.tuned_state import read_tuned_state
from .options import BuildOptions
from .precision import WideValue, calibration_tokens, float32_patterns, wide_values

if TYPE_CHECKING:
    from ..compiler.targets import CompileTarget

WEIGHT_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors", ".st", ".gguf")


@dataclass(frozen=True)
class TunedState:
    """``arrays`` of a file of state tuning, ``source``, as ``weights.tuned_state`` reads them."""

    source: str
    arrays: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Source:
    """A checkpoint with what was found out about it. ``options`` are the wishes that ``config`` fulfills; ``tokens`` are the
    special tokens that it names, and where it names none, the vocabulary's. ``tuned_state`` is what texts begin with, None for
    the model's own."""

    checkpoint: Checkpoint
    options: ModelOptions
    config: RWKVConfig
    vocabulary: list[Path]
    tokens: SpecialTokens
    template: Template
    tuned_state: TunedState | None = None

    @classmethod
    def of(cls, checkpoint: Checkpoint, options: BuildOptions = BuildOptions()) -> Source:
        """Raises UserError for an unknown generation, wrong tensors, no or a wrong vocabulary, special tokens that the model
        does not have, an unknown template, a tuned state of another model, and a layer or value to keep in float32 that the
        model does not have."""
        wishes = options.model_options()
        config, _, _ = resolve(checkpoint, wishes)
        vocabulary = find_vocabulary(checkpoint, config, Path(options.tokenizer) if options.tokenizer else None)
        tokenizer = load_tokenizer(vocabulary)
        tokens = special_tokens(checkpoint, tokenizer, config.vocab_size)
        template = load_template(options.template or generation_of(config).template(tokenizer.kind))
        template = with_stop_tokens(template, tokenizer, tokens)
        tuned = None
        if options.state is not None:
            tuned = TunedState(str(options.state), read_tuned_state(Path(options.state), config))
        source = cls(checkpoint, wishes, config, vocabulary, tokens, template, tuned)
        return source.with_float32(float32_patterns(config, options.float32_layers, options.float32_values))

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
        return wide_values(config, parameters, calibration_tokens(self.vocabulary, config.vocab_size), narrow)


def special_tokens(checkpoint: Checkpoint, tokenizer: Tokenizer, vocab_size: int) -> SpecialTokens:
    """The ids that a checkpoint names, else the vocabulary's. Raises UserError for one that the model has no row for."""
    named = checkpoint.tokens
    end = named.end
    if not end and named.end_text and len(ids := tokenizer.encode(named.end_text)) == 1:
        end = tuple(ids)
    end = end or tuple(tokenizer.end_ids)
    begin = next(iter((*tokenizer.end_ids, *end)), END_OF_TEXT) if named.begin is None else named.begin
    for token, use in (*((token, "ends a text") for token in end), (begin, "begins a text")):
        if token >= vocab_size:
            raise UserError(
                f"The configuration of {checkpoint.name} says that token {token} {use}, but the model has {vocab_size} "
                "tokens; correct config.json or generation_config.json."
            )
    return SpecialTokens(end=end, begin=begin, padding=named.padding)


def with_stop_tokens(template: Template, tokenizer: Tokenizer, tokens: SpecialTokens) -> Template:
    """The template with the model's end among its stop tokens, the only ones that mlc_llm heeds; without id 0, which all
    templates have, where that is a token like any."""
    own = [token for token in template.stop_token_ids if token != END_OF_TEXT or token in tokenizer.end_ids]
    return template.model_copy(update={"stop_token_ids": tuple(dict.fromkeys((*own, *tokens.end)))})


def find_checkpoint(
    model: str, models_dir: Path, *, random_seed: int | None = None, revision: str | None = None
) -> Checkpoint:
    """The checkpoint that a user named: a path, a name below ``models_dir``, a hub repository, or, with a seed, a preset.

    Raises UserError when there is nothing of that name."""
    if random_seed is not None:
        return random_checkpoint(load_preset(model), model, random_seed)
    local = models_dir / model
    source = str(local) if not Path(model).exists() and local.exists() else model
    if source in config_names("models") and not Path(source).exists():
        raise UserError(f"{model} is a preset, which has no weights of its own; add --random-weights to draw some.")
    if is_artifact(source):
        raise UserError(f"{source} is an artifact, built already; give the checkpoint that it was built from.")
    return open_checkpoint(source, revision=revision)


def checkpoints_in(folder: Path) -> list[Path]:
    """What looks like a checkpoint in a folder, in alphabetical order: files with the name of one, and folders that
    hold weights. Raises UserError for a folder that cannot be read."""
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []
        return [path for path in paths if (holds_weights(path) if path.is_dir() else path.suffix in WEIGHT_SUFFIXES)]
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}); name a checkpoint with --model.") from None


def is_download(model: str, models_dir: Path, options: BuildOptions) -> bool:
    """Whether ``find_checkpoint`` would fetch it, which takes time."""
    return options.random_seed is None and not (models_dir / model).exists() and is_on_hub(model)

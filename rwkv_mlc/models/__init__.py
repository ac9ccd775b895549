"""One file for each build of RWKV. ``GENERATIONS`` is the one list of what there is."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config import RWKVConfig
from ..errors import UserError
from . import rwkv4, rwkv5, rwkv6, rwkv7
from .generation import Generation, PackageHooks, Recurrence, Shapes
from .parameter import Parameter, StateTensor, check_tensors

if TYPE_CHECKING:
    from ..weights.checkpoint import Checkpoint, LazyTensor

__all__ = [
    "GENERATIONS",
    "Generation",
    "ModelOptions",
    "PackageHooks",
    "Parameter",
    "Recurrence",
    "StateTensor",
    "check_tensors",
    "detect_config",
    "generation_of",
    "resolve",
]

GENERATIONS: dict[str, Generation] = {
    generation.name: generation for module in (rwkv4, rwkv5, rwkv6, rwkv7) for generation in module.GENERATIONS
}
"""By ``RWKVConfig.generation``, the oldest first: a later one has all that tells an earlier one, and more."""

OTHER_MODELS = {
    r"blocks\.\d+\.qkv\..*": "RWKV-7b, whose attention keeps something of every token, so that its state grows with the text",
    r"(.*\.)?moba\..*": "RWKV-X, some of whose layers attend to all of the text, so that its state grows with it",
    r".*rosa.*": "RWKV-8 with ROSA, which looks for what it has read in all of the text, so that its state grows with it",
    r"blocks\.\d+\.ffn\.enn\.weight": "an experiment for RWKV-8, whose channel mixing every token scales by a row of its own",
}
"""Tensors of models that are beside the generations here, and what these models are."""


@dataclass(frozen=True)
class ModelOptions:
    """Wishes about a model's ``RWKVConfig``, by the names of its fields; None takes what the checkpoint itself says, and
    where it says nothing, the config's default. Raises UserError for numbers that mean nothing."""

    head_size_divisor: int | None = None
    context_length: int | None = None
    rescale_every: int | None = None
    float32: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.head_size_divisor is not None and self.head_size_divisor < 1:
            raise UserError(f"--head-size-divisor must be at least 1, not {self.head_size_divisor}.")
        if self.rescale_every is not None and self.rescale_every < 0:
            raise UserError(f"--rescale-every must be at least 1, or 0 for never, not {self.rescale_every}.")
        if self.context_length is not None and self.context_length < 1:
            raise UserError(f"--max-seq-len must be at least 1, or -1 for the model's own, not {self.context_length}.")


def generation_of(config: RWKVConfig) -> Generation:
    """Raises UserError for a generation that this version does not know, and for a config without sizes that it needs."""
    if config.generation not in GENERATIONS:
        raise UserError(f"Unknown RWKV generation {config.generation!r}; this version knows {', '.join(GENERATIONS)}.")
    generation = GENERATIONS[config.generation]
    if missing := [name for name in generation.own if name not in config.own]:
        raise UserError(
            f"The model configuration of an RWKV-{config.generation} lacks {', '.join(missing)}; write it again with "
            "gen-config."
        )
    return generation


def recognize(shapes: Shapes) -> Generation | None:
    """The latest generation that recognizes tensors of these shapes."""
    return next((g for g in reversed(GENERATIONS.values()) if g.recognizes(shapes)), None)


def detect_config(shapes: Shapes, options: ModelOptions = ModelOptions()) -> RWKVConfig:
    """Read generation and dimensions off tensor shapes under BlinkDL's names; file names play no part. Raises UserError for
    anything that is not of one of ``GENERATIONS``."""
    for pattern, model in OTHER_MODELS.items():
        if any(re.fullmatch(pattern, tensor) for tensor in shapes):
            raise UserError(f"This is {model}; what is built are the generations {', '.join(GENERATIONS)}.")
    required = ["emb.weight", "head.weight", "blocks.0.ffn.key.weight"]
    missing = [name for name in required if name not in shapes]
    if missing:
        raise UserError(f"This is not an RWKV checkpoint: it has no {', '.join(missing)}.")
    if len(shapes["emb.weight"]) != 2 or len(shapes["blocks.0.ffn.key.weight"]) != 2:
        raise UserError("This is not an RWKV checkpoint: emb.weight and blocks.0.ffn.key.weight should be matrices.")
    generation = recognize(shapes)
    if generation is None:
        raise UserError("This is not an RWKV checkpoint: it has neither blocks.0.att.time_decay nor blocks.0.att.r_k.")
    vocab_size, hidden_size = shapes["emb.weight"]
    layers = {int(match[1]) for match in (re.match(r"blocks\.(\d{1,9})\.", name) for name in shapes) if match}
    if max(layers) >= len(shapes):
        raise UserError(
            f"This is not an RWKV checkpoint: it has a block {max(layers)} and no more than {len(shapes)} tensors."
        )
    given = {name: getattr(options, name) for name in ("head_size_divisor", "context_length", "rescale_every")}
    found = {
        "generation": generation.name,
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": max(layers) + 1,
        "intermediate_size": shapes["blocks.0.ffn.key.weight"][0],
        "float32": options.float32,
        **generation.dimensions(shapes),
        **{field: value for field, value in given.items() if value is not None},
    }
    return RWKVConfig.from_dict(found, "The shape of the checkpoint's tensors", "it is damaged or no RWKV model")


def resolve(
    checkpoint: Checkpoint, options: ModelOptions = ModelOptions()
) -> tuple[RWKVConfig, list[Parameter], dict[str, LazyTensor]]:
    """Detect the generation of a checkpoint and check every tensor against it.

    Returns the config, its parameters in order and the tensors by ``Parameter.source``. Raises UserError for a
    checkpoint of no known generation, whose tensors do not fit it, or which states what its tensors contradict."""
    stated = {name: getattr(checkpoint, name) for name in ("head_size_divisor", "context_length", "rescale_every")}
    wished = {name: getattr(options, name) for name in stated}
    implied: dict[str, Any] = {name: wish if (wish := wished[name]) is not None else stated[name] for name in stated}
    config = detect_config(checkpoint.shapes, dataclasses.replace(options, **implied))
    if checkpoint.layer_norm_epsilon is not None:
        config = dataclasses.replace(config, layer_norm_epsilon=checkpoint.layer_norm_epsilon)
    generation = generation_of(config)
    generation.check_norms(config, bool(checkpoint.stated))
    _check_stated(checkpoint, config)
    tensors, parameters = generation.sanitize(checkpoint.tensors), generation.parameters(config)
    check_tensors(parameters, {name: tensor.shape for name, tensor in tensors.items()})
    return config, parameters, tensors


def _check_stated(checkpoint: Checkpoint, config: RWKVConfig) -> None:
    found: dict[str, tuple[Any, ...]] = {
        "model_type": (generation_of(config).model_type,),
        "architectures": (generation_of(config).model_type,),
        "value_dim": (config.attention_size,),
        "model_version": (config.generation, config.generation.replace(".", "_")),
        "vocab_size": (config.vocab_size,),
        "hidden_size": (config.hidden_size,),
        "attention_hidden_size": (config.attention_size,),
        "intermediate_size": (config.intermediate_size,),
        "num_hidden_layers": (config.num_hidden_layers,),
        "head_size": (config.head_size,),
        "num_attention_heads": (
            config.num_heads,
            config.head_size,
        ),  # RWKV-5's first folders give the latter by this name
    }
    generation = generation_of(config)
    found |= {name: (config.own[own],) for name, own in generation.own_in_configs.items() if config.own[own]}
    wrong = [
        f"{name} {value}, where its tensors have {found[name][0]}"
        for name, value in checkpoint.stated.items()
        if name in found and value not in found[name]
    ]
    if wrong:
        raise UserError(
            f"The config.json of {checkpoint.name} states {'; '.join(wrong)}; it is of another model: get the one that "
            "belongs to these weights, or move the weights to a folder of their own."
        )

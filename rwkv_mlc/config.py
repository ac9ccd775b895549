"""Dimensions of an RWKV model, taken from its tensors."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import field
from fnmatch import fnmatchcase
from typing import Annotated, Any

from pydantic import ConfigDict, Field, Strict, WithJsonSchema, model_serializer, model_validator
from pydantic.dataclasses import dataclass

from .errors import UserError
from .typed_json import Count, Extent, parse

GENERATIONS = ("4", "5.0", "5.1", "5.2")


Layers = Annotated[int, Field(ge=1, le=1 << 16)]
Epsilon = Annotated[float, Field(ge=0, allow_inf_nan=False)]
NAMES = {"type": "array", "items": {"type": "string"}, "default": None}


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="ignore"))
class RWKVConfig:
    """What a graph, a reference forward or a runner needs to know of a model.

    Sizes that only one generation has are in ``own``; JSON has them beside the other fields."""

    generation: str
    """``4``, ``5.0``, ``5.1`` or ``5.2``."""
    vocab_size: Extent
    """Rows of the embedding and of the head; some may stand for no token."""
    hidden_size: Extent
    """Channels of the residual stream."""
    num_hidden_layers: Layers
    intermediate_size: Extent
    """Channels of the channel mixing."""
    head_size: Count = 0
    """Channels of a head; 0 for generation 4, whose state has no heads."""
    head_size_divisor: Extent = 8
    """Scales the group norm of generation 5: eps = 1e-5 * divisor ** 2, as in RWKV-LM's ``RWKV-v5/src/model.py``, where
    ``ln_x`` is applied to ``x / head_size_divisor``."""
    layer_norm_epsilon: Epsilon = 1e-5
    context_length: Extent = 4096
    """Tokens; of the training. The model has no limit."""
    rescale_every: Count = 0
    """After every so many layers (0: never) the residual stream is halved, and what the layers after it add to it is too,
    which their weights take care of (ChatRWKV's ``RESCALE_LAYER``)."""
    float32: Annotated[tuple[str, ...], Strict(False)] = ()
    """Patterns of values, such as ``blocks.0.*`` and ``blocks.*.ffn.key``, which a target that computes in float16 keeps in
    float32."""
    own: Annotated[dict[str, Count], WithJsonSchema(NAMES)] = field(default_factory=dict, hash=False)
    """The names of sizes that only this generation has; each is a field beside the others."""

    def is_float32(self, value: str) -> bool:
        return any(fnmatchcase(value, pattern) for pattern in self.float32)

    def with_float32(self, patterns: Iterable[str]) -> RWKVConfig:
        return dataclasses.replace(self, float32=tuple(dict.fromkeys((*self.float32, *patterns))))

    def halvings(self, layer: int) -> int:
        """How often the residual stream was halved before a layer."""
        return layer // self.rescale_every if self.rescale_every else 0

    @property
    def num_heads(self) -> int:
        return self.hidden_size // self.head_size if self.head_size else 0

    @property
    def group_norm_epsilon(self) -> float:
        return 1e-5 * self.head_size_divisor**2

    @property
    def model_type(self) -> str:
        """The model's file in ``rwkv_mlc.models``: ``rwkv4`` or ``rwkv5``."""
        return f"rwkv{self.generation[0]}"

    @model_serializer
    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        fields = dataclasses.asdict(self)
        own = fields.pop("own")
        return fields | ({"own": list(own), **own} if own else {})

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, data: Any) -> Any:
        """``own`` from the JSON form, which lists its names."""
        if isinstance(data, dict) and isinstance(names := data.get("own"), list):
            return data | {"own": {name: data.get(name) for name in names}}
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RWKVConfig:
        """From the JSON form; unknown keys are ignored, so that a file written by a newer version stays readable. Raises
        UserError for a field that is missing or does not fit."""
        return parse(cls, json.dumps(data), "The model configuration", "write it again with gen-config")


def detect_config(
    shapes: Mapping[str, tuple[int, ...]], head_size_divisor: int | None = None, context_length: int | None = None
) -> RWKVConfig:
    """Read generation and dimensions off tensor shapes under BlinkDL's names; file names play no part.

    The rules are those of ChatRWKV's ``model.py`` (``ln_x``: 5; ``att.gate.weight``: 5.1; a second axis in
    ``time_decay``: 5.2; ``time_maa_x``: 6; ``att.r_k``: 7). Raises UserError for anything that is not generation 4 to 5.2.
    """
    required = ["emb.weight", "head.weight", "blocks.0.ffn.key.weight"]
    missing = [name for name in required if name not in shapes]
    if missing:
        raise UserError(f"This is not an RWKV checkpoint: it has no {', '.join(missing)}.")
    if len(shapes["emb.weight"]) != 2 or len(shapes["blocks.0.ffn.key.weight"]) != 2:
        raise UserError("This is not an RWKV checkpoint: emb.weight and blocks.0.ffn.key.weight should be matrices.")

    def has(pattern: str) -> bool:
        return any(re.fullmatch(pattern, name) for name in shapes)

    if has(r"blocks\.\d+\.att\.r_k"):
        raise UserError("This is an RWKV-7 checkpoint; generations 4 to 5.2 are supported.")
    if has(r"blocks\.\d+\.att\.time_maa_\w+"):
        raise UserError("This is an RWKV-6 checkpoint; generations 4 to 5.2 are supported.")
    decay = shapes.get("blocks.0.att.time_decay")
    if decay is None:
        raise UserError("This is not an RWKV checkpoint: it has no blocks.0.att.time_decay.")

    vocab_size, hidden_size = shapes["emb.weight"]
    if not has(r"blocks\.\d+\.att\.ln_x\.weight"):
        generation, head_size = "4", 0
    else:
        heads = decay[0] if decay else 0
        if not heads or hidden_size % heads:
            raise UserError(
                f"blocks.0.att.time_decay says {heads} heads, which do not divide the hidden size {hidden_size}."
            )
        head_size = hidden_size // heads
        if not has(r"blocks\.\d+\.att\.gate\.weight"):
            generation = "5.0"
        elif len(decay) > 1 and decay[1] > 1:
            generation = "5.2"
        else:
            generation = "5.1"
    layers = {int(match[1]) for match in (re.match(r"blocks\.(\d+)\.", name) for name in shapes) if match}
    return RWKVConfig(
        generation=generation,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=max(layers) + 1,
        intermediate_size=shapes["blocks.0.ffn.key.weight"][0],
        head_size=head_size,
        **({} if head_size_divisor is None else {"head_size_divisor": head_size_divisor}),
        **({} if context_length is None else {"context_length": context_length}),
    )

"""Dimensions of an RWKV model, taken from its tensors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, Strict, model_serializer, model_validator
from pydantic.dataclasses import dataclass

from .typed_json import Count, Extent, parse

Layers = Annotated[int, Field(ge=1, le=1 << 16)]
Epsilon = Annotated[float, Field(ge=0, allow_inf_nan=False)]
LN_OUT_EPSILON = 1e-5
NAMES = {"type": "array", "items": {"type": "string"}, "default": None}


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="ignore", defer_build=True))
class RWKVConfig:
    """What a graph, a reference forward or a runner needs to know of a model.

    Sizes that not every model has are in ``own``; JSON has them beside the other fields."""

    generation: str
    """Its name, such as ``5.2``."""
    vocab_size: Extent
    """Rows of the embedding and of the head; some may stand for no token."""
    hidden_size: Extent
    """Channels of the residual stream."""
    num_hidden_layers: Layers
    """Blocks."""
    intermediate_size: Extent
    """Channels of the channel mixing."""
    head_size: Count = 0
    """Channels of a head; 0 for generation 4, whose state has no heads."""
    head_size_divisor: Extent = 8
    """Scales the group norm of heads: eps = 1e-5 * divisor ** 2, as in RWKV-LM's ``RWKV-v5/src/model.py``, where
    ``ln_x`` is applied to ``x / head_size_divisor``."""
    layer_norm_epsilon: Epsilon = 1e-5
    """The epsilon of every layer norm but ``ln_out``, whose is 1e-5 (transformers' ``modeling_rwkv.py``)."""
    context_length: Extent = 4096
    """Tokens; of the training. The model has no limit."""
    rescale_every: Count = 0
    """After every so many layers (0: never) the residual stream is halved, and what the layers after it add to it is too,
    which their weights take care of (ChatRWKV's ``RESCALE_LAYER``)."""
    float32: Annotated[tuple[str, ...], Strict(False)] = ()
    """Patterns of values, such as ``blocks.0.*`` and ``blocks.*.ffn.key``, which a target that computes in float16 keeps in
    float32."""
    own: Annotated[dict[str, Count], Field(json_schema_extra=NAMES)] = field(default_factory=dict, hash=False)
    """The names of sizes that not every model has, such as ``attention_size``, the channels of a time mixing that has not
    ``hidden_size`` of them; each is a field beside the others."""

    def is_float32(self, value: str) -> bool:
        return any(fnmatchcase(value, pattern) for pattern in self.float32)

    def with_float32(self, patterns: Iterable[str]) -> RWKVConfig:
        return dataclasses.replace(self, float32=tuple(dict.fromkeys((*self.float32, *patterns))))

    def halvings(self, layer: int) -> int:
        """How often the residual stream was halved before a layer."""
        return layer // self.rescale_every if self.rescale_every else 0

    def norm_epsilon(self, norm: str) -> float:
        """The epsilon of a layer norm by its name, such as ``ln_out``."""
        return LN_OUT_EPSILON if norm == "ln_out" else self.layer_norm_epsilon

    @property
    def attention_size(self) -> int:
        """Channels of the time mixing (RWKV-LM's ``dim_att``)."""
        return self.own.get("attention_size", self.hidden_size)

    @property
    def num_heads(self) -> int:
        return self.attention_size // self.head_size if self.head_size else 0

    @property
    def group_norm_epsilon(self) -> float:
        """That of heads. Raises ValueError for a model without them."""
        if not self.head_size:
            raise ValueError(f"RWKV-{self.generation} has no heads to normalize")
        return 1e-5 * self.head_size_divisor**2

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
        names = data.get("own") if isinstance(data, dict) else None
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return data | {"own": {name: data.get(name) for name in names}}
        return data

    @classmethod
    def from_dict(
        cls,
        data: Mapping[str, Any],
        source: Path | str = "The model configuration",
        advice: str = "write it again with gen-config",
    ) -> RWKVConfig:
        """From the JSON form; unknown keys are ignored, so that a file written by a newer version stays readable. Raises
        UserError for a field that is missing or does not fit: what ``source`` gives, and ``advice``."""
        return parse(cls, json.dumps(data), source, advice)

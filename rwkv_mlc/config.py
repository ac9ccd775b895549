"""Dimensions of an RWKV model, taken from its tensors."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from .errors import UserError

GENERATIONS = ("4", "5.0", "5.1", "5.2")


@dataclass(frozen=True)
class RWKVConfig:
    """Everything a graph, a reference forward or a runner needs to know about a model's shape.

    ``generation`` is one of ``GENERATIONS``. ``head_size`` is 0 for generation 4, whose state has no heads.
    ``head_size_divisor`` scales the group norm of generation 5: eps = 1e-5 * divisor ** 2, as in RWKV-LM's
    ``RWKV-v5/src/model.py``, where ``ln_x`` is applied to ``x / head_size_divisor``.

    The last two fields are about precision. Behind every ``rescale_every``-th layer (0: none) the residual stream is halved,
    and what the layers after it add to it is too, which their weights take care of (ChatRWKV's ``RESCALE_LAYER``).
    ``float32`` are patterns of values, such as ``blocks.0.*`` and ``blocks.*.ffn.key``, which a target that computes in
    float16 keeps in float32.
    """

    generation: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    head_size: int = 0
    head_size_divisor: int = 8
    layer_norm_epsilon: float = 1e-5
    context_length: int = 4096
    rescale_every: int = 0
    float32: tuple[str, ...] = ()

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

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping) -> RWKVConfig:
        """Unknown keys are ignored, so that a file written by a newer version stays readable.

        Raises UserError when a required field is missing or the generation is unknown."""
        fields = {f.name: f for f in dataclasses.fields(cls)}
        missing = [n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in data]
        if missing:
            raise UserError(f"The model configuration lacks {', '.join(missing)}; write it again with gen-config.")
        if data["generation"] not in GENERATIONS:
            raise UserError(
                f"Unknown RWKV generation {data['generation']!r}; this version knows {', '.join(GENERATIONS)}."
            )
        known = {name: data[name] for name in fields if name in data}
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in known.items()})


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

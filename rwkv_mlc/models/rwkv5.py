"""RWKV-5 in its versions 5.0, 5.1 and 5.2 (Peng et al. 2024, "Eagle and Finch", section 4; ChatRWKV ``model.py`` att_seq_v5)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from ..config import RWKVConfig
from . import block
from .parameter import Parameter, StateTensor

if TYPE_CHECKING:
    from ..weights.checkpoint import LazyTensor


def mixes_of(config: RWKVConfig) -> tuple[str, ...]:
    """What the mixed inputs are for; 5.0 has no gate."""
    return ("key", "value", "receptance") + (() if config.generation == "5.0" else ("gate",))


def sanitize(tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """5.0 stores the bonus as its logarithm under ``time_first``; later versions store ``time_faaaa`` itself."""

    def exponential(tensor: LazyTensor) -> LazyTensor:
        return dataclasses.replace(tensor, read=lambda: np.exp(tensor.read().astype(np.float64)))

    result = dict(tensors)
    for name in tensors:
        bonus = name.removesuffix("time_first") + "time_faaaa"
        if name.endswith(".time_first") and bonus not in tensors:
            result[bonus] = exponential(result.pop(name))
    return result


def parameters(config: RWKVConfig) -> list[Parameter]:
    """Every parameter in the order in which the compiled functions take them.

    Decay and bonus are [H, N] in every version: the one scalar per head of 5.0 and 5.1 is repeated."""
    c, heads, size = config.hidden_size, config.num_heads, config.head_size
    per_head = (heads, size) if config.generation == "5.2" else (heads,)
    mixes = mixes_of(config)

    def per_channel(array: np.ndarray) -> np.ndarray:
        return np.broadcast_to(array.reshape(heads, -1), (heads, size))

    def decay(w: np.ndarray) -> np.ndarray:
        return np.exp(-np.exp(per_channel(w)))

    def attention(name: str, source: str, halvings: int) -> list[Parameter]:
        return [
            Parameter(f"{name}.time_decay", f"{source}.time_decay", (heads, size), "vector", decay, per_head),
            Parameter(f"{name}.time_faaaa", f"{source}.time_faaaa", (heads, size), "vector", per_channel, per_head),
            *(block.mix(name, source, target, c) for target in mixes),
            *(block.linear(f"{name}.{matrix}", f"{source}.{matrix}", c, c) for matrix in mixes),
            block.linear(f"{name}.output", f"{source}.output", c, c, halvings),
            *block.norm(f"{name}.ln_x", f"{source}.ln_x", c),
        ]

    return block.parameters(config, attention)


def states(config: RWKVConfig) -> list[StateTensor]:
    """``att_x`` and ``ffn_x`` are the layer-normed inputs of the last token; ``att_kv`` is S[h, k, v], key before value."""
    c, size = config.hidden_size, config.head_size
    return [
        StateTensor("att_x", (c,)),
        StateTensor("att_kv", (config.num_heads, size, size)),
        StateTensor("ffn_x", (c,)),
    ]


def time_mixing(config: RWKVConfig, ops, weights, state, layer: int, x):
    """x + W_o (silu(g) * group_norm(wkv)), equations 3 to 7; no gate in 5.0."""
    w, targets = weights.at("attention"), mixes_of(config)
    mixes = {target: w.vector(f"time_mix_{target}") for target in targets}
    mixed, last = ops.norm_shift_mix(x, weights.norm("ln1"), mixes, state.get(layer, "att_x"))
    state.set(layer, "att_x", last)
    activations = [None, None, None, "silu"][: len(targets)]
    k, v, r, *gate = ops.linears(mixed, [w.matrix(target) for target in targets], activations=activations)
    out, kv = ops.wkv5(r, k, v, w.vector("time_decay"), w.vector("time_faaaa"), state.get(layer, "att_kv"))
    state.set(layer, "att_kv", kv)
    out = ops.group_norm(out, w.norm("ln_x"), config.num_heads, config.group_norm_epsilon, *gate)
    return ops.linear(out, w.matrix("output"), residual=x)


def forward(config: RWKVConfig, ops, weights, state, tokens):
    """The graph of one call, up to the residual stream that the head reads."""
    return block.forward(config, ops, weights, state, tokens, time_mixing)

"""RWKV-4 (Peng et al. 2023, "RWKV: Reinventing RNNs for the Transformer Era", section 3; ChatRWKV ``model.py`` att_seq)."""

from __future__ import annotations

import numpy as np

from ..config import RWKVConfig
from . import block
from .parameter import Parameter, StateTensor

MIXES = ("key", "value", "receptance")


def parameters(config: RWKVConfig) -> list[Parameter]:
    """Every parameter in the order in which the compiled functions take them."""
    c = config.hidden_size

    def attention(name: str, source: str, halvings: int) -> list[Parameter]:
        return [
            Parameter(f"{name}.time_decay", f"{source}.time_decay", (c,), transform=lambda w: -np.exp(w)),
            Parameter(f"{name}.time_first", f"{source}.time_first", (c,)),
            *(block.mix(name, source, target, c) for target in MIXES),
            *(block.linear(f"{name}.{matrix}", f"{source}.{matrix}", c, c) for matrix in MIXES),
            block.linear(f"{name}.output", f"{source}.output", c, c, halvings),
        ]

    return block.parameters(config, attention)


def states(config: RWKVConfig) -> list[StateTensor]:
    """``att_x`` and ``ffn_x`` are the layer-normed inputs of the last token; ``att_a`` and ``att_b`` numerator and
    denominator of wkv, both scaled by exp(-``att_p``), the running maximum of the exponents."""
    c = config.hidden_size
    return [
        StateTensor("att_x", (c,)),
        StateTensor("att_a", (c,)),
        StateTensor("att_b", (c,)),
        StateTensor("att_p", (c,), -1e30),
        StateTensor("ffn_x", (c,)),
    ]


def time_mixing(config: RWKVConfig, ops, weights, state, layer: int, x):
    """x + W_o (sigmoid(r) * wkv), equations 11 to 18."""
    w = weights.at("attention")
    mixes = {target: w.vector(f"time_mix_{target}") for target in MIXES}
    mixed, last = ops.norm_shift_mix(x, weights.norm("ln1"), mixes, state.get(layer, "att_x"))
    state.set(layer, "att_x", last)
    k, v, r = ops.linears(mixed, [w.matrix(target) for target in MIXES], activations=[None, None, "sigmoid"])
    roles = ("att_a", "att_b", "att_p")
    previous = [state.get(layer, role) for role in roles]
    out, updated = ops.wkv4(r, k, v, w.vector("time_decay"), w.vector("time_first"), previous)
    for role, value in zip(roles, updated):
        state.set(layer, role, value)
    return ops.linear(out, w.matrix("output"), residual=x)


def forward(config: RWKVConfig, ops, weights, state, tokens):
    """The graph of one call, up to the residual stream that the head reads."""
    return block.forward(config, ops, weights, state, tokens, time_mixing)

"""The made-up generation in float64."""

from __future__ import annotations

from functools import partial

import numpy as np

from rwkv_mlc.config import RWKVConfig
from rwkv_mlc.reference import layers
from rwkv_mlc.reference.layers import Parameters, linear, mix, normalize, sigmoid, token_shift
from rwkv_mlc.reference.rwkv5 import wkv
from rwkv_mlc.reference.trace import Trace


def time_mixing(config: RWKVConfig, p: Parameters, x: np.ndarray, last: np.ndarray, s: np.ndarray, trace: Trace):
    """W_o (SiLU(g) * GroupNorm(SiLU(h) * wkv)): [T, C] -> [T, C], followed by the next ``last`` and s."""
    previous, last = token_shift(x, last)
    heads = (len(x), config.num_heads, config.head_size)

    def project(name: str) -> np.ndarray:
        mixed = trace(f"mixed_{name}", mix(p, f"attention.time_mix_{name}", x, previous))
        return trace(name, linear(p, f"attention.{name}", mixed))

    k, v, r = (project(name).reshape(heads) for name in ("key", "value", "receptance"))
    g, h = project("gate"), project("second")
    out, s = wkv(r, k, v, p["attention.time_decay"], p["attention.time_faaaa"], s)
    out = trace("wkv", out.reshape(x.shape) * trace("second_silu", h * sigmoid(h)))
    out = normalize(out.reshape(heads), config.group_norm_epsilon).reshape(x.shape)
    out = trace("ln_x", out * p["attention.ln_x.weight"] + p["attention.ln_x.bias"])
    out = trace("gated", out * trace("gate_silu", g * sigmoid(g)))
    return trace("output", linear(p, "attention.output", out)), last, s


def forward(config: RWKVConfig, parameters: Parameters, x: np.ndarray, state: dict, trace: Trace, _tokens: np.ndarray):
    """Logits [T, V] of the embedded tokens ``x`` [T, C]; ``state``, by (layer, role), gets new arrays."""
    mixing = partial(time_mixing, config)
    return layers.forward(config, parameters, x, state, trace, mixing, ("att_x", "att_kv"))

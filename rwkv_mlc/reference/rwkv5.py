"""RWKV-5: Peng et al. 2024, "Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence", section 4.

5.2 is the paper's Eagle. In 5.1 decay and bonus are one number per head, and 5.0 has no gate either.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from ..config import RWKVConfig
from . import layers
from .layers import Parameters, linear, mix, normalize, sigmoid, token_shift
from .trace import Trace


def wkv(
    r: np.ndarray, k: np.ndarray, v: np.ndarray, w: np.ndarray, u: np.ndarray, s: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """r_t (s_{t-1} + diag(u) k_t^T v_t), where s_t = diag(w) s_{t-1} + k_t^T v_t.

    r, k, v: [T, H, N]; w (decay per token, 0 to 1) and u (bonus): [H, N]; s: [H, N, N], key before value.
    Returns the heads' outputs [T, H, N] and the next s."""
    w, u = w[:, :, None], u[:, :, None]
    out = np.empty_like(v)
    for t in range(len(k)):
        kv = k[t][:, :, None] * v[t][:, None, :]
        out[t] = (r[t][:, None, :] @ (s + u * kv))[:, 0]
        s = w * s + kv
    return out, s


def time_mixing(
    config: RWKVConfig, p: Parameters, x: np.ndarray, last: np.ndarray, s: np.ndarray, trace: Trace
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """W_o (SiLU(g) * GroupNorm(wkv)): [T, C] -> [T, C], followed by the next ``last`` and s."""
    previous, last = token_shift(x, last)
    heads, flat = (len(x), config.num_heads, config.head_size), (len(x), config.attention_size)

    def project(name: str) -> np.ndarray:
        mixed = trace(f"mixed_{name}", mix(p, f"attention.time_mix_{name}", x, previous))
        return trace(name, linear(p, f"attention.{name}", mixed))

    k, v, r = (project(name).reshape(heads) for name in ("key", "value", "receptance"))
    out, s = wkv(r, k, v, p["attention.time_decay"], p["attention.time_faaaa"], s)
    out = normalize(trace("wkv", out.reshape(flat)).reshape(heads), config.group_norm_epsilon).reshape(flat)
    out = trace("ln_x", out * p["attention.ln_x.weight"] + p["attention.ln_x.bias"])
    if config.generation != "5.0":
        g = project("gate")
        out = trace("gated", out * trace("gate_silu", g * sigmoid(g)))
    return trace("output", linear(p, "attention.output", out)), last, s


def forward(
    config: RWKVConfig, parameters: Parameters, x: np.ndarray, state: dict, trace: Trace, _tokens: np.ndarray
) -> tuple[np.ndarray, dict]:
    """Logits [T, V] of the embedded tokens ``x`` [T, C]; ``state``, by (layer, role), gets new arrays."""
    mixing = partial(time_mixing, config)
    return layers.forward(config, parameters, x, state, trace, mixing, ("att_x", "att_kv"))

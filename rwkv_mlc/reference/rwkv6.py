"""RWKV-6: Peng et al. 2024, "Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence", section 4 (Finch)."""

from __future__ import annotations

from functools import partial

import numpy as np

from ..config import RWKVConfig
from . import layers
from .layers import Parameters, linear, normalize, sigmoid, token_shift
from .trace import Trace

TARGETS = ("decay", "key", "value", "receptance", "gate")
"""What the parts of ``time_maa_w1`` and ``time_maa_w2`` are for, in their order."""


def wkv(
    r: np.ndarray, k: np.ndarray, v: np.ndarray, w: np.ndarray, u: np.ndarray, s: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """r_t (s_{t-1} + diag(u) k_t^T v_t), where s_t = diag(w_t) s_{t-1} + k_t^T v_t.

    r, k, v, w (decay, 0 to 1): [T, H, N]; u (bonus): [H, N]; s: [H, N, N], key before value.
    Returns the heads' outputs [T, H, N] and the next s."""
    out = np.empty_like(v)
    for t in range(len(k)):
        kv = k[t][:, :, None] * v[t][:, None, :]
        out[t] = (r[t][:, None, :] @ (s + u[:, :, None] * kv))[:, 0]
        s = w[t][:, :, None] * s + kv
    return out, s


def data_dependent_mix(p: Parameters, x: np.ndarray, previous: np.ndarray, trace: Trace) -> dict[str, np.ndarray]:
    """x_t + (x_{t-1} - x_t) (maa + tanh(mix(x_t) w1) w2) for each of ``TARGETS``, equations 16 to 18."""
    mixed = trace("mixed_x", previous + p["attention.time_mix_x"].reshape(-1) * (x - previous))
    hidden = trace("time_maa_w1", linear(p, "attention.time_maa_w1", mixed))
    hidden = trace("time_maa_w1_tanh", np.tanh(hidden))
    parts = np.split(p["attention.time_maa_w2.weight"], len(TARGETS))
    hidden = hidden.reshape(len(x), len(TARGETS), parts[0].shape[1])
    result = {}
    for i, target in enumerate(TARGETS):
        mix = p[f"attention.time_maa_{target}"].reshape(-1) + (hidden[:, i] @ parts[i].T)[:, : x.shape[1]]
        result[target] = trace(f"mixed_{target}", x + (previous - x) * mix)
    return result


def time_mixing(
    config: RWKVConfig, p: Parameters, x: np.ndarray, last: np.ndarray, s: np.ndarray, trace: Trace
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """W_o (SiLU(g) * GroupNorm(wkv)): [T, C] -> [T, C], followed by the next ``last`` and s."""
    previous, last = token_shift(x, last)
    heads, flat = (len(x), config.num_heads, config.head_size), (len(x), config.attention_size)
    mixed = data_dependent_mix(p, x, previous, trace)

    k, v, r, g = (
        trace(name, linear(p, f"attention.{name}", mixed[name])) for name in ("key", "value", "receptance", "gate")
    )
    g = trace("gate_silu", g * sigmoid(g))
    hidden = trace("time_decay_w1", linear(p, "attention.time_decay_w1", mixed["decay"]))
    hidden = trace("time_decay_w1_tanh", np.tanh(hidden))
    w = trace("time_decay_w2", linear(p, "attention.time_decay_w2", hidden))
    w = trace("decay", np.exp(-np.exp(p["attention.time_decay"].reshape(-1) + w)))

    r, k, v, w = (array.reshape(heads) for array in (r, k, v, w))
    out, s = wkv(r, k, v, w, p["attention.time_faaaa"], s)
    out = normalize(trace("wkv", out.reshape(flat)).reshape(heads), config.group_norm_epsilon).reshape(flat)
    out = trace("ln_x", out * p["attention.ln_x.weight"] + p["attention.ln_x.bias"])
    return trace("output", linear(p, "attention.output", trace("gated", out * g))), last, s


def forward(
    config: RWKVConfig, parameters: Parameters, x: np.ndarray, state: dict, trace: Trace, _tokens: np.ndarray
) -> tuple[np.ndarray, dict]:
    """Logits [T, V] of the embedded tokens ``x`` [T, C]; ``state``, by (layer, role), gets new arrays."""
    mixing = partial(time_mixing, config)
    return layers.forward(config, parameters, x, state, trace, mixing, ("att_x", "att_kv"))

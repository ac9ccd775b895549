"""RWKV-4: Peng et al. 2023, "RWKV: Reinventing RNNs for the Transformer Era", section 3.1 and appendix D."""

from __future__ import annotations

import numpy as np

from ..config import RWKVConfig
from . import layers
from .layers import Parameters, linear, mix, sigmoid, token_shift
from .trace import Trace


def wkv(
    k: np.ndarray, v: np.ndarray, w: np.ndarray, u: np.ndarray, a: np.ndarray, b: np.ndarray, p: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The average of all v so far, weighted by exp(k) and the decay since (3.1.2), as a recurrence (appendix D).

    k, v: [T, C]; w [C] is the logarithm of the decay per token, u [C] the bonus of the current one. a / b is the
    average and p the exponent that both are scaled down by, [C] each. Returns wkv [T, C] and the next a, b, p."""
    out = np.empty_like(v)
    for t in range(len(k)):
        q = np.maximum(p, u + k[t])
        past, now = np.exp(p - q), np.exp(u + k[t] - q)
        out[t] = (past * a + now * v[t]) / (past * b + now)

        q = np.maximum(p + w, k[t])
        past, now = np.exp(p + w - q), np.exp(k[t] - q)
        a, b, p = past * a + now * v[t], past * b + now, q
    return out, a, b, p


def time_mixing(
    p: Parameters, x: np.ndarray, last: np.ndarray, *average: np.ndarray, trace: Trace
) -> tuple[np.ndarray, ...]:
    """W_o (sigma(r) * wkv): [T, C] -> [T, C], followed by the next ``last`` and ``average`` (a, b, p)."""
    previous, last = token_shift(x, last)

    def project(name: str) -> np.ndarray:
        mixed = trace(f"mixed_{name}", mix(p, f"attention.time_mix_{name}", x, previous))
        return trace(name, linear(p, f"attention.{name}", mixed))

    k, v, r = project("key"), project("value"), project("receptance")
    out, *averaged = wkv(k, v, p["attention.time_decay"], p["attention.time_first"], *average)
    r = trace("receptance_sigmoid", sigmoid(r))
    gated = trace("gated", r * trace("wkv", out))
    return trace("output", linear(p, "attention.output", gated)), last, *averaged


def forward(
    config: RWKVConfig, parameters: Parameters, x: np.ndarray, state: dict, trace: Trace, _tokens: np.ndarray
) -> tuple[np.ndarray, dict]:
    """Logits [T, V] of the embedded tokens ``x`` [T, C]; ``state``, by (layer, role), gets new arrays."""
    return layers.forward(config, parameters, x, state, trace, time_mixing, ("att_x", "att_a", "att_b", "att_p"))

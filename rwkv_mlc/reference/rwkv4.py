"""RWKV-4: Peng et al. 2023, "RWKV: Reinventing RNNs for the Transformer Era", section 3.1 and appendix D."""

from __future__ import annotations

import numpy as np

from ..config import RWKVConfig
from .layers import Parameters, below, channel_mixing, layer_norm, linear, mix, sigmoid, token_shift


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
    p: Parameters, x: np.ndarray, last: np.ndarray, *average: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """W_o (sigma(r) * wkv): [T, C] -> [T, C], followed by the next ``last`` and ``average`` (a, b, p)."""
    previous, last = token_shift(x, last)
    r, k, v = (
        linear(p, f"attention.{name}", mix(p, f"attention.time_mix_{name}", x, previous))
        for name in ("receptance", "key", "value")
    )
    out, *average = wkv(k, v, p["attention.time_decay"], p["attention.time_first"], *average)
    return linear(p, "attention.output", sigmoid(r) * out), last, *average


def forward(config: RWKVConfig, parameters: Parameters, tokens: np.ndarray, state: dict) -> tuple[np.ndarray, dict]:
    """Logits [T, V] of ``tokens`` [T]; ``state``, by (layer, role), gets new arrays."""
    epsilon = config.layer_norm_epsilon
    x = parameters["model.embeddings.weight"][tokens].astype(np.float64)
    x = layer_norm(parameters, "model.blocks.0.pre_ln", x, epsilon)
    for i in range(config.num_hidden_layers):
        p = below(parameters, f"model.blocks.{i}.")
        roles = [(i, role) for role in ("att_x", "att_a", "att_b", "att_p")]
        out, *new = time_mixing(p, layer_norm(p, "ln1", x, epsilon), *(state[role] for role in roles))
        state.update(zip(roles, new))
        x = x + out
        out, state[i, "ffn_x"] = channel_mixing(p, layer_norm(p, "ln2", x, epsilon), state[i, "ffn_x"])
        x = x + out
    return linear(parameters, "head", layer_norm(parameters, "model.ln_out", x, epsilon)), state

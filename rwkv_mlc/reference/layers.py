"""What the generations have in common. T tokens, C channels; parameters by their names below ``model.blocks.i.``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..config import RWKVConfig
from .trace import Trace, within

Parameters = Mapping[str, np.ndarray]


def below(parameters: Parameters, prefix: str) -> Parameters:
    """The parameters whose names start with ``prefix``, by the rest of their names."""
    return {name.removeprefix(prefix): array for name, array in parameters.items() if name.startswith(prefix)}


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def normalize(x: np.ndarray, epsilon: float) -> np.ndarray:
    """Zero mean and unit variance over the last axis."""
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)


def layer_norm(p: Parameters, name: str, x: np.ndarray, epsilon: float) -> np.ndarray:
    """[T, C] -> [T, C]."""
    return normalize(x, epsilon) * p[f"{name}.weight"] + p[f"{name}.bias"]


def linear(p: Parameters, name: str, x: np.ndarray) -> np.ndarray:
    """[T, in] -> [T, out] by a matrix [out, in]."""
    return x @ p[f"{name}.weight"].T


def token_shift(x: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x_{t-1} for every t of x [T, C], where ``last`` [C] comes before x_0; and the last of all for the next call."""
    padded = np.concatenate([last[None], x])
    return padded[:-1], padded[-1]


def mix(p: Parameters, name: str, x: np.ndarray, previous: np.ndarray) -> np.ndarray:
    """mu x_t + (1 - mu) x_{t-1}."""
    return previous + p[name].reshape(-1) * (x - previous)


def rescale(config: RWKVConfig, layer: int, x: np.ndarray) -> np.ndarray:
    """The residual stream after a layer, halved where ``RWKVConfig.rescale_every`` says so."""
    return x / 2 if config.halvings(layer + 1) > config.halvings(layer) else x


def channel_mixing(p: Parameters, x: np.ndarray, last: np.ndarray, trace: Trace) -> tuple[np.ndarray, np.ndarray]:
    """sigma(r) * W_v max(k, 0)^2: [T, C] -> [T, C], and the x [C] to shift in before the next token."""
    previous, last = token_shift(x, last)

    def project(name: str) -> np.ndarray:
        mixed = trace(f"mixed_{name}", mix(p, f"feed_forward.time_mix_{name}", x, previous))
        return trace(name, linear(p, f"feed_forward.{name}", mixed))

    k, r = project("key"), project("receptance")
    k_squared = trace("k_squared", np.maximum(k, 0) ** 2)
    r = trace("receptance_sigmoid", sigmoid(r))
    return trace("gated", r * trace("value", linear(p, "feed_forward.value", k_squared))), last


def forward(
    config: RWKVConfig,
    parameters: Parameters,
    x: np.ndarray,
    state: dict,
    trace: Trace,
    time_mixing: Callable,
    roles: Sequence[str],
    channel_mixing: Callable = channel_mixing,
) -> tuple[np.ndarray, dict]:
    """Logits [T, V] of the embedded tokens ``x`` [T, C]; ``state``, by (layer, role), gets new arrays.

    ``time_mixing(p, x, *states, trace=...)`` gives what a layer adds to x, followed by its next states of ``roles``."""
    epsilon = config.layer_norm_epsilon
    x = trace("blocks.0.ln0", layer_norm(parameters, "model.blocks.0.pre_ln", x, epsilon))
    for i in range(config.num_hidden_layers):
        p, block = below(parameters, f"model.blocks.{i}."), within(trace, f"blocks.{i}.")
        keys = [(i, role) for role in roles]
        normed = block("ln1", layer_norm(p, "ln1", x, epsilon))
        out, *new = time_mixing(p, normed, *(state[key] for key in keys), trace=within(block, "att."))
        state.update(zip(keys, new))
        x = block("att.residual", x + out)
        normed = block("ln2", layer_norm(p, "ln2", x, epsilon))
        out, state[i, "ffn_x"] = channel_mixing(p, normed, state[i, "ffn_x"], within(block, "ffn."))
        x = rescale(config, i, block("ffn.residual", x + out))
    x = trace("ln_out", layer_norm(parameters, "model.ln_out", x, config.norm_epsilon("ln_out")))
    return trace("logits", linear(parameters, "head", x)), state

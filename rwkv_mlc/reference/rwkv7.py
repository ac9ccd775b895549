"""RWKV-7: Peng et al. 2025, "RWKV-7 "Goose" with Expressive Dynamic State Evolution", section 4; RWKV-LM's
``rwkv_v7_numpy.py`` and, for the embeddings of 7a that scale the channel mixing, ``rwkv_v7a_demo.py``."""

from __future__ import annotations

import math

import numpy as np

from ..config import RWKVConfig
from .layers import Parameters, below, layer_norm, linear, mix, normalize, rescale, sigmoid, token_shift
from .trace import Trace, within


def wkv(
    r: np.ndarray, w: np.ndarray, k: np.ndarray, v: np.ndarray, kk: np.ndarray, a: np.ndarray, s: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """s_t r_t, where s_t = s_{t-1} (diag(w_t) - kk_t^T (a_t * kk_t)) + v_t^T k_t: the state is read after its update.

    r, w (decay, 0 to 1), k, v, kk (removal key of length 1), a (rate, 0 to 1): [T, H, N]; s: [H, N, N], value before key.
    Returns the heads' outputs [T, H, N] and the next s."""
    out = np.empty_like(v)
    for t in range(len(k)):
        removed = s @ kk[t][:, :, None]
        s = s * w[t][:, None, :] - removed * (a[t] * kk[t])[:, None, :] + v[t][:, :, None] * k[t][:, None, :]
        out[t] = (s @ r[t][:, :, None])[:, :, 0]
    return out, s


def time_mixing(
    config: RWKVConfig,
    p: Parameters,
    x: np.ndarray,
    last: np.ndarray,
    s: np.ndarray,
    v_first: np.ndarray | None,
    trace: Trace,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """W_o (g * (GroupNorm(wkv) + bonus)): [T, C] -> [T, C], followed by the next ``last`` and s, and by the values of the
    first layer, which has no ``v_first`` itself."""
    previous, last = token_shift(x, last)
    heads, flat = (len(x), config.num_heads, config.head_size), (len(x), config.attention_size)

    def mixed(name: str) -> np.ndarray:
        return trace(f"mixed_{name}", mix(p, f"attention.time_mix_{name}", x, previous))

    def project(name: str, x: np.ndarray) -> np.ndarray:
        return trace(name, linear(p, f"attention.{name}", x))

    mixed_value = mixed("value")
    r = project("receptance", mixed("receptance"))
    k = project("key", mixed("key"))
    v = project("value", mixed_value)
    w = project("w2", trace("w1_tanh", np.tanh(project("w1", mixed("decay")))))
    w = trace("decay", np.exp(-math.exp(-0.5) * sigmoid(p["attention.w0"].reshape(-1) + w)))
    a = trace("rate", sigmoid(p["attention.a0"].reshape(-1) + project("a2", project("a1", mixed("rate")))))
    g = project("g2", trace("g1_sigmoid", sigmoid(project("g1", mixed("gate")))))
    if v_first is None:
        v_first = v
    else:
        nu = trace("value_mix", sigmoid(p["attention.v0"].reshape(-1) + project("v2", project("v1", mixed_value))))
        v = v + (v_first - v) * nu

    r, w, k, v, a = (array.reshape(heads) for array in (r, w, k, v, a))
    kk = k * p["attention.k_k"]
    kk = kk / np.maximum(np.sqrt((kk**2).sum(-1, keepdims=True)), 1e-12)
    k = k * (1 + (a - 1) * p["attention.k_a"])
    out, s = wkv(r, w, k, v, kk, a, s)
    bonus = (r * k * p["attention.r_k"]).sum(-1, keepdims=True) * v

    out = normalize(trace("wkv", out.reshape(flat)).reshape(heads), config.group_norm_epsilon).reshape(flat)
    out = trace("ln_x", out * p["attention.ln_x.weight"] + p["attention.ln_x.bias"])
    out = trace("gated", (out + trace("bonus", bonus.reshape(flat))) * g)
    return project("output", out), last, s, v_first


def channel_mixing(
    p: Parameters, x: np.ndarray, last: np.ndarray, tokens: np.ndarray, trace: Trace
) -> tuple[np.ndarray, np.ndarray]:
    """W_v max(k, 0)^2, in 7a W_v (max(k, 0)^2 * z): [T, C] -> [T, C], and the x [C] to shift in before the next token."""
    previous, last = token_shift(x, last)
    k = trace("mixed_key", mix(p, "feed_forward.time_mix_key", x, previous))
    k = trace("k_squared", np.maximum(trace("key", linear(p, "feed_forward.key", k)), 0) ** 2)
    if "feed_forward.s_emb.weight" in p:
        k = trace("scaled", k * token_scale(p, x, tokens, trace))
    return trace("value", linear(p, "feed_forward.value", k)), last


def token_scale(p: Parameters, x: np.ndarray, tokens: np.ndarray, trace: Trace) -> np.ndarray:
    """(x s1) M s2 + s0 of 7a, where M is the token's own matrix: x [T, C], tokens [T] -> [T, F]."""
    z = trace("s1", linear(p, "feed_forward.s1", x))
    own = p["feed_forward.s_emb.weight"][tokens].astype(z.dtype).reshape(len(z), z.shape[1], z.shape[1])
    z = trace("s_emb", (z[:, None, :] @ own)[:, 0])
    return trace("scale", trace("s2", linear(p, "feed_forward.s2", z)) + p["feed_forward.s0"].reshape(-1))


def forward(
    config: RWKVConfig, parameters: Parameters, x: np.ndarray, state: dict, trace: Trace, tokens: np.ndarray
) -> tuple[np.ndarray, dict]:
    """Logits [T, V] of ``tokens`` [T], which are embedded in ``x`` [T, C]; ``state``, by (layer, role), gets new arrays."""
    epsilon, v_first = config.layer_norm_epsilon, None
    x = trace("blocks.0.ln0", layer_norm(parameters, "model.blocks.0.pre_ln", x, epsilon))
    for i in range(config.num_hidden_layers):
        p, block = below(parameters, f"model.blocks.{i}."), within(trace, f"blocks.{i}.")
        normed = block("ln1", layer_norm(p, "ln1", x, epsilon))
        out, state[i, "att_x"], state[i, "att_kv"], v_first = time_mixing(
            config, p, normed, state[i, "att_x"], state[i, "att_kv"], v_first, within(block, "att.")
        )
        x = block("att.residual", x + out)
        normed = block("ln2", layer_norm(p, "ln2", x, epsilon))
        out, state[i, "ffn_x"] = channel_mixing(p, normed, state[i, "ffn_x"], tokens, within(block, "ffn."))
        x = rescale(config, i, block("ffn.residual", x + out))
    x = trace("ln_out", layer_norm(parameters, "model.ln_out", x, config.norm_epsilon("ln_out")))
    return trace("logits", linear(parameters, "head", x)), state

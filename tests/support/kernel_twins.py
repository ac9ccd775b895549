"""The kernels of ``tir_kernels`` once more, in plain NumPy and in the dtype of the arrays given."""

from __future__ import annotations

import numpy as np


def wkv4(r, k, v, w, u, a, b, p):
    """r, k, v [T, C]; the others [C]. Returns out [T, C] and the state (a, b, p) after the last row."""
    out = np.empty_like(v)
    for t in range(len(k)):
        top = np.maximum(p, u + k[t])
        old, new = np.exp(p - top), np.exp(u + k[t] - top)
        out[t] = r[t] * (old * a + new * v[t]) / (old * b + new)
        top = np.maximum(p + w, k[t])
        old, new = np.exp(p + w - top), np.exp(k[t] - top)
        a, b, p = old * a + new * v[t], old * b + new, top
    return out, (a, b, p)


def wkv5(r, k, v, w, u, state):
    """r, k, v [T, H * N]; w, u [H, N]; state [H, N, N]. Returns out [T, H * N] and (the state after the last row,)."""
    r, k, v = (x.reshape(-1, *w.shape) for x in (r, k, v))
    out = np.empty_like(v)
    for t in range(len(k)):
        for h in range(len(w)):
            kv = np.outer(k[t, h], v[t, h])
            out[t, h] = r[t, h] @ (state[h] + u[h, :, None] * kv)
            state = state.copy()
            state[h] = w[h, :, None] * state[h] + kv
    return out.reshape(len(out), -1), (state,)


def wkv6(r, k, v, w, u, state):
    """r, k, v, w [T, H * N]; u [H, N]; state [H, N, N]. Returns out [T, H * N] and (the state after the last row,)."""
    r, k, v, w = (x.reshape(-1, *u.shape) for x in (r, k, v, w))
    out = np.empty_like(v)
    for t in range(len(k)):
        for h in range(len(u)):
            kv = np.outer(k[t, h], v[t, h])
            out[t, h] = r[t, h] @ (state[h] + u[h, :, None] * kv)
            state = state.copy()
            state[h] = w[t, h, :, None] * state[h] + kv
    return out.reshape(len(out), -1), (state,)


def wkv7(r, w, k, v, a, v_first, nu, k_k, k_a, r_k, state):
    """r to nu [T, H * N]; k_k, k_a, r_k [H, N]; state [H, N, N], value before key. Returns (out, bonus), [T, H * N] each, and
    (the state after the last row,)."""
    r, w, k, v, a, v_first, nu = (x.reshape(-1, *k_k.shape) for x in (r, w, k, v, a, v_first, nu))
    out, bonus, state = np.empty_like(v), np.empty_like(v), state.copy()
    for t in range(len(k)):
        for h in range(len(k_k)):
            removal = k[t, h] * k_k[h]
            removal = removal / max(np.linalg.norm(removal), 1e-12)
            key = k[t, h] * (1 + (a[t, h] - 1) * k_a[h])
            value = v[t, h] + (v_first[t, h] - v[t, h]) * nu[t, h]
            transition = np.diag(w[t, h]) - np.outer(removal, removal * a[t, h])
            state[h] = state[h] @ transition + np.outer(value, key)
            out[t, h] = state[h] @ r[t, h]
            bonus[t, h] = r[t, h] @ (key * r_k[h]) * value
    return (out.reshape(len(out), -1), bonus.reshape(len(out), -1)), (state,)


def layer_norm(x, weight, bias, epsilon):
    """Over the last axis."""
    centered = x - x.mean(-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + epsilon) * weight + bias


def group_norm(x, weight, bias, num_groups, epsilon):
    """x [T, C]: every group of channels of every row by itself."""
    centered = x.reshape(len(x), num_groups, -1)
    centered = centered - centered.mean(-1, keepdims=True)
    normed = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + epsilon)
    return normed.reshape(x.shape) * weight + bias


def norm_shift_mix(x, weight, bias, mixes, state, segment_ends, slots, epsilon):
    """x [T, C], mixes [n, C], state [S, C]. Returns out [n, T, C] and the new state."""
    y, state = layer_norm(x, weight, bias, epsilon), state.copy()
    previous = np.empty_like(y)
    for first, end, slot in zip(np.r_[0, segment_ends[:-1]], segment_ends, slots):
        previous[first] = state[slot]
        previous[first + 1 : end] = y[first : end - 1]
        state[slot] = y[end - 1]
    return np.stack([y * mix + previous * (1 - mix) for mix in mixes]), state


def border_slots(rows, segment_ends, slots):
    first_slots, last_slots = np.full((2, rows), -1, np.int32)
    for first, end, slot in zip(np.r_[0, segment_ends[:-1]], segment_ends, slots):
        first_slots[first], last_slots[end - 1] = slot, slot
    return first_slots, last_slots


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


ACTIVATIONS = {
    None: lambda x: x,
    "sigmoid": sigmoid,
    "silu": lambda x: x * sigmoid(x),
    "squared_relu": lambda x: np.maximum(x, 0) ** 2,
    "tanh": np.tanh,
    "exp_minus_exp": lambda x: np.exp(-np.exp(x)),
    "bounded_decay": lambda x: np.exp(-np.exp(-0.5) * sigmoid(x)),
}


def product(x, weight, activation=None, gate=1, residual=0):
    """x [T, K], weight [N, K]."""
    return ACTIVATIONS[activation](x @ weight.T) * gate + residual


def join_fields(fields, bits):
    """Words [N, M] of 32 // bits fields each, lowest bits first; fields [N, M * (32 // bits)]."""
    per_word = 32 // bits
    words = np.zeros((len(fields), fields.shape[1] // per_word), np.uint32)
    for i in range(per_word):
        words |= fields[:, i::per_word].astype(np.uint32) << np.uint32(bits * i)
    return words


def dequantize(fields, scale, bits, group):
    """fields [N, G * group], scale [N, G] -> [N, G * group]."""
    return (fields.astype(scale.dtype) - (2 ** (bits - 1) - 1)) * np.repeat(scale, group, 1)


def pack(stored, rows=16):
    """[N, M] -> [ceil(N / rows), M, rows], zeros past N."""
    padded = np.pad(stored, ((0, -len(stored) % rows), (0, 0)))
    return np.stack([padded[n : n + rows].T for n in range(0, len(padded), rows)])


def outliers(x, group):
    """Which inputs [T, K] the integers of their group leave out."""
    x = x.astype(np.float32)
    magnitude = np.abs(np.pad(x, ((0, 0), (0, -x.shape[1] % group)))).reshape(len(x), -1, group)
    limit = magnitude.max(-1)
    most = np.minimum((magnitude > 0).sum(-1) // 4, group // 8)
    for _ in range(60):
        lower = limit / 32
        limit = np.where((magnitude > lower[..., None]).sum(-1) <= most, lower, limit)
    return (magnitude > limit[..., None]).reshape(len(x), -1)[:, : x.shape[1]]


def quantize_activation(x, group):
    """x [T, K] -> integers of 21 bits [T, Kp], scales [T, G], of inputs that are no outliers."""
    x = np.where(outliers(x, group), 0, x)
    x = np.pad(x, ((0, 0), (0, -x.shape[1] % group))).reshape(len(x), -1, group)
    scales = np.abs(x).max(-1) / 2**20
    return np.rint(x / np.where(scales, scales, 1)[..., None]).astype(np.int32).reshape(len(x), -1), scales


def digits_of_activation(digits, quads, fields):
    """digits [T, 3, words * quads] -> digits of every input [T, 3, Kp], by the fields that each byte holds."""
    spread = np.ascontiguousarray(digits).view(np.int8).reshape(*digits.shape[:2], -1, len(quads), 4)
    result = np.zeros((*spread.shape[:3], fields), np.int32)
    for j, quad in enumerate(quads):
        result[..., quad] = spread[..., j, : len(quad)]
        assert not spread[..., j, len(quad) :].any()
    return result.reshape(*digits.shape[:2], -1)

"""Kernels of low-rank pairs, of mixes that depend on the data and of what follows wkv of RWKV-7, against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest

from support import kernel_twins as twins
from support.kernel_build import call, error
from tir_kernels.cpu.expand import expand
from tir_kernels.cpu.expand_mix import expand_mix
from tir_kernels.cpu.group_norm import group_norm
from tir_kernels.cpu.norm_shift_mix import norm_shift_mix
from tir_kernels.cpu.norm_shift_mix_token import norm_shift_mix_token
from tir_kernels.cpu.packed import PackedFloat
from tir_kernels.cpu.token_matrix import token_matrix
from tir_kernels.expansion import Expansion
from tir_kernels.rows import RowFloat

HALF, SINGLE = PackedFloat("float16"), PackedFloat("float32")
PAIRS = (
    Expansion(96, 12, "bounded_decay"),
    Expansion(96, 5, "sigmoid"),
    Expansion(96, 16, None, biased=False),
    Expansion(50, 8, "exp_minus_exp"),
)
TILED = tuple(
    Expansion(64, pair.rank, pair.activation, pair.biased) for pair in PAIRS
)  # whole blocks for each of 2 parts
TARGETS, CHANNELS, RANK = 5, 40, 6
VOCAB, SIZE = 11, 8


@pytest.fixture(scope="module")
def kernels(build_kernels):
    return build_kernels(
        {
            "expand": expand(PAIRS, HALF, 4),
            "expand_one": expand(PAIRS, SINGLE, 1),
            "expand_parts": expand(TILED, HALF, 1, parts=2),
            "expand_gated": expand(PAIRS[2:3], SINGLE, 4, gated=True),
            "expand_mix": expand_mix(TARGETS, CHANNELS, RANK, HALF, 4, 3, 1),
            "token_matrix": token_matrix(VOCAB, SIZE, RowFloat("float16")),
            "group_norm": group_norm(2, 24, 64e-5, True, added=True),
            "shift": norm_shift_mix(CHANNELS, 1, 1e-5, unmixed=2),
            "token_shift": norm_shift_mix_token(CHANNELS, 1, 1e-5, 2, unmixed=1),
        }
    )


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(0.1, 1.0, shape).astype(np.float32)


@pytest.mark.parametrize(
    "name, pairs, dtype, rows",
    [
        ("expand", PAIRS, np.float16, 7),
        ("expand", PAIRS, np.float16, 1),
        ("expand_one", PAIRS, np.float32, 3),
        ("expand_parts", TILED, np.float16, 2),
    ],
)
def test_expand(kernels, name, pairs, dtype, rows):
    hidden = [random(rows, pair.rank, seed=i) for i, pair in enumerate(pairs)]
    weights = [(0.3 * random(pair.rows, pair.rank, seed=i)).astype(dtype) for i, pair in enumerate(pairs)]
    biases = [random(pair.rows, seed=i) for i, pair in enumerate(pairs)]
    args = []
    for pair, weight, bias in zip(pairs, weights, biases):
        args += [twins.pack(weight), *([bias[None, None]] if pair.biased else [])]
    outs = [np.full((1, rows, pair.rows), np.nan, np.float32) for pair in pairs]
    written = range(-len(outs), 0)
    found = call(kernels[name], *(h[None] for h in hidden), *args, *outs, written=written)
    for pair, h, weight, bias, out in zip(pairs, hidden, weights, biases, found):
        y = h.astype(np.float64) @ weight.astype(np.float64).T + (bias if pair.biased else 0)
        assert error(out[0], twins.ACTIVATIONS[pair.activation](y)) < 2e-6


def test_a_gate_multiplies_what_is_expanded(kernels):
    """Its zeros remain."""
    h, weight, gate = random(3, 16), random(96, 16), np.maximum(random(3, 96), 0)
    out = np.full((1, 3, 96), np.nan, np.float32)
    (found,) = call(kernels["expand_gated"], h[None], twins.pack(weight), gate[None], out, written=[-1])
    assert error(found[0], h.astype(np.float64) @ weight.astype(np.float64).T * gate) < 2e-6
    assert np.array_equal(found[0] == 0, gate == 0) and (gate == 0).any()


@pytest.mark.parametrize("rows", [1, 6])
def test_expand_mix(kernels, rows):
    h, x = random(rows, TARGETS * RANK), random(3, rows, CHANNELS)
    weight, mixes = random(TARGETS, CHANNELS, RANK).astype(np.float16), random(TARGETS, CHANNELS)
    padded = np.pad(weight, ((0, 0), (0, -CHANNELS % 16), (0, 0))).reshape(-1, RANK)
    out = np.full((TARGETS, rows, CHANNELS), np.nan, np.float32)
    args = [h[None], twins.pack(padded), *mixes[:, None, None], x]
    (found,) = call(kernels["expand_mix"], *args, out, written=[-1])
    _, now, before = x.astype(np.float64)
    for j in range(TARGETS):
        hidden = h[:, j * RANK : (j + 1) * RANK].astype(np.float64)
        mix = mixes[j] + hidden @ weight[j].astype(np.float64).T
        assert error(found[j], now + (before - now) * mix) < 2e-6


def test_token_matrix(kernels):
    """Ids outside of the vocabulary read its ends."""
    tokens, x = np.array([3, 0, 10, 10, 15, -2], np.int32), random(6, SIZE)
    table = random(VOCAB, SIZE * SIZE).astype(np.float16)
    out = np.full((1, 6, SIZE), np.nan, np.float32)
    (found,) = call(kernels["token_matrix"], tokens, x[None], table, out, written=[-1])
    matrices = table.astype(np.float64).reshape(VOCAB, SIZE, SIZE)[[3, 0, 10, 10, 10, 0]]
    assert error(found[0], np.einsum("ti,tij->tj", x.astype(np.float64), matrices)) < 1e-6


def test_what_is_added_to_a_group_norm_is_gated(kernels):
    x, added, gate = (random(5, 48, seed=i) for i in range(3))
    weight, bias = random(48), random(48, seed=4)
    out = np.full((1, 5, 48), np.nan, np.float32)
    args = [x[None], weight, bias, added[None], gate[None], out]
    (found,) = call(kernels["group_norm"], *args, written=[-1])
    assert error(found[0], (twins.group_norm(x.astype(np.float64), weight, bias, 2, 64e-5) + added) * gate) < 2e-6


def test_unmixed_planes_are_the_norm_and_the_one_before(kernels):
    x, weight, bias, mix, state = random(4, 40), random(40), random(40, seed=1), random(1, 1, 40), random(1, 40)
    y = twins.layer_norm(x.astype(np.float64), weight, bias, 1e-5)
    before = np.concatenate([state, y[:-1]])
    borders = np.array([0, -1, -1, -1], np.int32), np.array([-1, -1, -1, 0], np.int32)
    outs = [np.full(shape, np.nan, np.float32) for shape in ((3, 4, 40), (1, 40))]
    out, after = call(kernels["shift"], x[None], weight, bias, mix, state, *borders, *outs, written=[-2, -1])
    for plane, expected in zip(out, (y * mix[0] + before * (1 - mix[0]), y, before)):
        assert error(plane, expected) < 2e-6
    outs = [np.full(shape, np.nan, np.float32) for shape in ((2, 1, 40), (1, 40))]
    out, after = call(kernels["token_shift"], x[None, :1], weight, bias, mix, state, *outs, written=[-2, -1])
    assert error(out[1], y[:1]) < 2e-6 and error(after, y[:1]) < 2e-6

"""GPU kernels of low-rank pairs and what is beside them, against NumPy in float64 on every device of the fixture ``gpu``."""

from __future__ import annotations

import numpy as np
import pytest

from support import kernel_twins as twins
from support.gpu_kernels import EXACT, ROUNDED, stuck
from support.kernel_build import call, error
from tir_kernels.expansion import Expansion
from tir_kernels.gpu.expand import expand
from tir_kernels.gpu.expand_mix import expand_mix
from tir_kernels.gpu.group_norm import group_norm
from tir_kernels.gpu.norm_shift_mix import norm_shift_mix
from tir_kernels.gpu.token_matrix import token_matrix
from tir_kernels.rows import RowFloat

HALF, SINGLE = RowFloat("float16"), RowFloat("float32")
PAIRS = (  # rows that leave part of a block, ranks of more chunks than lanes, of fewer and of single elements
    Expansion(96, 80, "bounded_decay"),
    Expansion(70, 5, "sigmoid"),
    Expansion(33, 16, None, biased=False),
    Expansion(50, 12, "exp_minus_exp"),
)
TARGETS, CHANNELS, PADDED, RANK = 5, 40, 48, 12
VOCAB, SIZE = 11, 8
EXPAND = {  # products, form, tokens, what else
    "prompt": (PAIRS, HALF, 8, {"float16_lanes": 8}),
    "one": (PAIRS, SINGLE, 1, {}),
    "batch": (PAIRS[:2], HALF, 4, {}),
    "gated": (PAIRS[2:3], HALF, 8, {"gated": True, "dtype": "float16"}),
}


def all_kernels() -> dict:
    expansions = {f"expand_{name}": expand(*given, **more) for name, (*given, more) in EXPAND.items()}
    return expansions | {
        "expand_mix": expand_mix(TARGETS, CHANNELS, RANK, HALF, 8, 3, 1, PADDED, "float16"),
        "expand_mix_one": expand_mix(TARGETS, CHANNELS, RANK, SINGLE, 1, 3, 1, PADDED),
        "token_matrix": token_matrix(VOCAB, SIZE, HALF),
        "group_norm": group_norm(2, 24, 64e-5, True, "float16", added=True),
        "shift": norm_shift_mix(CHANNELS, 1, 1e-5, "prefill", unmixed=2),
        "token_shift": norm_shift_mix(CHANNELS, 1, 1e-5, "decode", unmixed=1),
    }


@pytest.fixture(scope="module")
def kernels(gpu):
    return gpu.build(all_kernels())


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(0.1, 1.0, shape).astype(np.float32)


def check_expand(function, name: str, rows: int) -> None:
    pairs, form, _, more = EXPAND[name]
    dtype = more.get("dtype", "float32")
    hidden = [random(rows, pair.rank, seed=i) for i, pair in enumerate(pairs)]
    weights = [(0.3 * random(pair.rows, pair.rank, seed=i)).astype(form.dtype) for i, pair in enumerate(pairs)]
    biases = [random(pair.rows, seed=i) for i, pair in enumerate(pairs)]
    gate = np.maximum(random(rows, pairs[0].rows), 0).astype(dtype) if "gated" in more else None
    args = []
    for pair, weight, bias in zip(pairs, weights, biases):
        args += [weight, *([bias[None, None]] if pair.biased else [])]
    args += [] if gate is None else [gate[None]]
    outs = [np.full((1, rows, pair.rows), np.nan, dtype) for pair in pairs]
    found = call(function, *(h[None] for h in hidden), *args, *outs, written=range(-len(outs), 0))
    for pair, h, weight, bias, out in zip(pairs, hidden, weights, biases, found):
        y = h.astype(np.float64) @ weight.astype(np.float64).T + (bias if pair.biased else 0)
        y = twins.ACTIVATIONS[pair.activation](y) * (1 if gate is None else gate)
        assert error(out[0], y) < (EXACT if dtype == "float32" else ROUNDED)
        assert gate is None or np.array_equal(out[0] == 0, gate == 0)


@pytest.mark.parametrize("name", EXPAND)
def test_expand(kernels, name):
    for rows in (1, 9) if name != "batch" else (2, 7):
        check_expand(kernels[f"expand_{name}"], name, rows)


@pytest.mark.parametrize("name, dtype, rows", [("expand_mix", "float16", 9), ("expand_mix_one", "float32", 3)])
def test_expand_mix(kernels, name, dtype, rows):
    h, x = random(rows, TARGETS * RANK), random(3, rows, CHANNELS).astype(dtype)
    weight, mixes = random(TARGETS, PADDED, RANK).astype(dtype), random(TARGETS, CHANNELS)
    out = np.full((TARGETS, rows, CHANNELS), np.nan, dtype)
    (found,) = call(kernels[name], h[None], weight.reshape(-1, RANK), *mixes[:, None, None], x, out, written=[-1])
    _, now, before = x.astype(np.float64)
    for j in range(TARGETS):
        hidden = h[:, j * RANK : (j + 1) * RANK].astype(np.float64)
        mix = mixes[j] + hidden @ weight[j, :CHANNELS].astype(np.float64).T
        assert error(found[j], now + (before - now) * mix) < (EXACT if dtype == "float32" else ROUNDED)


def test_token_matrix(kernels):
    """Ids outside of the vocabulary read its ends."""
    tokens, x = np.array([3, 0, 10, 10, 15, -2], np.int32), random(6, SIZE)
    table = random(VOCAB, SIZE * SIZE).astype(np.float16)
    out = np.full((1, 6, SIZE), np.nan, np.float32)
    (found,) = call(kernels["token_matrix"], tokens, x[None], table, out, written=[-1])
    matrices = table.astype(np.float64).reshape(VOCAB, SIZE, SIZE)[[3, 0, 10, 10, 10, 0]]
    assert error(found[0], np.einsum("ti,tij->tj", x.astype(np.float64), matrices)) < EXACT


def test_what_is_added_to_a_group_norm_is_gated(kernels):
    x, added, gate = (random(5, 48, seed=i) for i in range(3))
    weight, bias = random(48), random(48, seed=4)
    args = [x[None], weight, bias, added[None], gate[None], np.full((1, 5, 48), np.nan, np.float16)]
    (found,) = call(kernels["group_norm"], *args, written=[-1])
    expected = (twins.group_norm(x.astype(np.float64), weight, bias, 2, 64e-5) + added) * gate
    assert error(found[0], expected) < ROUNDED


def test_unmixed_planes_are_the_norm_and_the_one_before(kernels):
    x, weight, bias, mix, state = random(4, 40), random(40), random(40, seed=1), random(1, 1, 40), random(1, 40)
    y = twins.layer_norm(x.astype(np.float64), weight, bias, 1e-5)
    before = np.concatenate([state, y[:-1]])
    outs = [np.full(shape, np.nan, np.float32) for shape in ((3, 4, 40), (1, 40))]
    args = [x[None], weight, bias, mix, state, np.array([4], np.int32)]
    out, after = call(kernels["shift"], *args, *outs, written=[-2, -1])
    for plane, expected in zip(out, (y * mix[0] + before * (1 - mix[0]), y, before)):
        assert error(plane, expected) < EXACT
    assert error(after, y[-1:]) < EXACT
    outs = [np.full(shape, np.nan, np.float32) for shape in ((2, 1, 40), (1, 40))]
    out, after = call(kernels["token_shift"], x[None, :1], weight, bias, mix, state, *outs, written=[-2, -1])
    assert error(out[1], y[:1]) < EXACT and error(after, y[:1]) < EXACT


MUTATIONS = {
    "no barrier before threads add up": lambda source: source.replace("__syncthreads();", "", 1),
    "one hidden value": stuck("h0"),
    "one bias": stuck("bias1"),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_checks_find_mistakes(mutation, cuda_device, libraries):
    kernel = {"expand_prompt": all_kernels()["expand_prompt"]}
    changed = cuda_device.build(kernel, libraries, MUTATIONS[mutation])["expand_prompt"]
    with pytest.raises((AssertionError, RuntimeError)):
        check_expand(changed, "prompt", 9)

"""Kernels that work row by row against their twins in float64: norms, token shift, embedding, slots; and exp itself."""

from __future__ import annotations

import numpy as np
import pytest
from tvm.script.ir_builder import tirx as T

from support import kernel_twins as twins
from support.kernel_build import call, error
from tir_kernels.activations import ACTIVATIONS
from tir_kernels.builder import arg, prim_func, span
from tir_kernels.cpu.border_slots import border_slots
from tir_kernels.cpu.embedding import embedding
from tir_kernels.cpu.group_norm import group_norm
from tir_kernels.cpu.layer_norm import layer_norm
from tir_kernels.cpu.norm_shift_mix import norm_shift_mix
from tir_kernels.cpu.norm_shift_mix_token import norm_shift_mix_token
from tir_kernels.cpu.simd import exp
from tir_kernels.rows import RowFloat, RowGroup

WIDTHS = [48, 50]  # a multiple of 16 and one that leaves vectors of two
HEADS = [(2, 64), (3, 8), (5, 12)]
MIXES = [1, 3]
VOCAB, CHANNELS = 23, 90  # channels end within a group and within a word of every form
TABLES = {
    "float32": RowFloat("float32"),
    "float16": RowFloat("float16"),
    "q4": RowGroup(4, 32, "float16"),
    "q8": RowGroup(8, 32, "float32"),
    "q3": RowGroup(3, 40, "float16"),
}
FUNCTIONS = ["exp", "sigmoid", "silu"]
LANES = [1, 16]
EPS = 64e-5  # group norm's epsilon, 1e-5 x divisor^2 with the usual divisor of 8


def elementwise(function: str, width: int):
    """``exp``, or what is made of it, over an array."""

    @prim_func
    def kernel():
        blocks = T.int64()
        x, out = arg("x", (blocks, width)), arg("out", (blocks, width))
        with T.serial(0, blocks) as i:
            at = span(0, width)
            y = exp(x[i, at], width) if function == "exp" else ACTIVATIONS[function](x[i, at], width, exp)
            T.buffer_store(out, y, [i, at])

    return kernel


@pytest.fixture(scope="module")
def kernels(build_kernels):
    functions = {"border_slots": border_slots(in_place=True), "functional_border_slots": border_slots()}
    functions |= {f"layer_norm_{c}": layer_norm(c, 1e-5) for c in WIDTHS}
    functions |= {f"group_norm_{h}x{n}": group_norm(h, n, EPS, False) for h, n in HEADS}
    functions |= {f"gated_group_norm_{h}x{n}": group_norm(h, n, EPS, True) for h, n in HEADS}
    functions["group_norm_other_epsilon"] = group_norm(*HEADS[0], 1e-5, False)
    functions |= {f"shift_{c}_{n}": norm_shift_mix(c, n, 1e-5, in_place=True) for c in WIDTHS for n in MIXES}
    functions |= {f"functional_shift_{c}_{n}": norm_shift_mix(c, n, 1e-5) for c in WIDTHS for n in MIXES}
    functions |= {
        f"token_shift_{c}_{n}": norm_shift_mix_token(c, n, 1e-5, 2, in_place=True) for c in WIDTHS for n in MIXES
    }
    functions |= {f"functional_token_shift_{c}_{n}": norm_shift_mix_token(c, n, 1e-5, 2) for c in WIDTHS for n in MIXES}
    functions |= {f"embedding_{name}": embedding(VOCAB, CHANNELS, form) for name, form in TABLES.items()}
    functions |= {f"{function}_{width}": elementwise(function, width) for function in FUNCTIONS for width in LANES}
    return build_kernels(functions)


def affine(rng, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias [C]."""
    return tuple(rng.normal([[1], [0.2]], 0.3, (2, channels)).astype(np.float32))


@pytest.mark.parametrize("channels", WIDTHS)
@pytest.mark.parametrize("rows", [1, 7])
def test_layer_norm(kernels, channels, rows):
    rng = np.random.default_rng(0)
    x = rng.normal(3.0, 2.0, (rows, channels)).astype(np.float32)
    weight, bias = affine(rng, channels)
    (out,) = call(kernels[f"layer_norm_{channels}"], x[None], weight, bias, np.full_like(x[None], np.nan), written=[-1])
    assert error(out[0], twins.layer_norm(x.astype(np.float64), weight, bias, 1e-5)) < 1e-6


def group_norm_inputs(heads: tuple[int, int], rows: int = 6, scale: float = 1.0):
    """x, weight, bias, gate: every head and every row has a mean and a scale of its own."""
    rng = np.random.default_rng(1)
    spread, center = rng.uniform(0.2, 5, (rows, heads[0], 1)), rng.normal(0.5, 2, (rows, heads[0], 1))
    x = (scale * rng.normal(center, spread, (rows, *heads))).reshape(rows, -1).astype(np.float32)
    return x, *affine(rng, x.shape[1]), rng.normal(0.3, 1, x.shape).astype(np.float32)


def run_group_norm(function, x, *others):
    """x and a gate [T, C]; weight and bias [C]."""
    return call(function, x[None], *others, np.full_like(x[None], np.nan), written=[-1])[0][0]


@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_group_norm(kernels, heads):
    x, weight, bias, gate = group_norm_inputs(heads)
    name = "group_norm_{}x{}".format(*heads)
    expected = twins.group_norm(x.astype(np.float64), weight, bias, heads[0], EPS)
    out = run_group_norm(kernels[name], x, weight, bias)
    assert error(out, expected) < 2e-6
    assert error(run_group_norm(kernels[f"gated_{name}"], x, weight, bias, gate[None]), expected * gate) < 2e-6

    over_tokens = twins.group_norm(x.T.reshape(heads[0], -1).astype(np.float64), 1, 0, 1, EPS)
    over_tokens = over_tokens.reshape(x.shape[1], -1).T * weight + bias
    assert error(out, over_tokens) > 0.1
    one_by_one = [run_group_norm(kernels[name], x[t : t + 1], weight, bias) for t in range(len(x))]
    assert np.array_equal(np.concatenate(one_by_one), out)


def test_group_norm_epsilon_counts_for_small_values(kernels):
    x, weight, bias, _ = group_norm_inputs(HEADS[0], scale=5e-3)
    name = "group_norm_{}x{}".format(*HEADS[0])
    large, small = (twins.group_norm(x.astype(np.float64), weight, bias, HEADS[0][0], e) for e in (EPS, 1e-5))
    assert error(large, small) > 0.1
    assert error(run_group_norm(kernels[name], x, weight, bias), large) < 2e-6
    assert error(run_group_norm(kernels["group_norm_other_epsilon"], x, weight, bias), small) < 2e-6


LENGTHS = [5, 1, 17, 2]
SLOTS, POOL = [4, 0, 6, 2], 7


def run_border_slots(kernels, lengths, slots) -> list[np.ndarray]:
    ends = np.cumsum(lengths).astype(np.int32)
    tokens = np.zeros(ends[-1], np.int32)
    outputs = [np.full_like(tokens, 99)] * 2
    return call(kernels["border_slots"], tokens, ends, np.array(slots, np.int32), *outputs, written=[-2, -1])


@pytest.mark.parametrize("lengths, slots", [(LENGTHS, SLOTS), ([1], [3]), ([9], [0]), ([1, 1, 1], [2, 0, 1])])
def test_border_slots(kernels, lengths, slots):
    expected = twins.border_slots(sum(lengths), np.cumsum(lengths), slots)
    assert all(np.array_equal(*pair) for pair in zip(run_border_slots(kernels, lengths, slots), expected))


def shift_inputs(channels: int, mixes: int, rows: int):
    """x [T, C], [weight, bias], mixes [n, C], state [S, C]."""
    rng = np.random.default_rng(2)
    x = rng.normal(1.0, 2.0, (rows, channels)).astype(np.float32)
    mix = rng.uniform(0.1, 0.95, (mixes, channels)).astype(np.float32)
    return x, affine(rng, channels), mix, rng.normal(-0.5, 1, (POOL, channels)).astype(np.float32)


def run_shift(kernels, x, norm, mixes, state, lengths, slots):
    """out [n, T, C] and the state pool after."""
    function = kernels[f"shift_{x.shape[1]}_{len(mixes)}"]
    borders = run_border_slots(kernels, lengths, slots)
    out = np.full((len(mixes), *x.shape), np.nan, np.float32)
    mixes = [mix[None, None] for mix in mixes]
    state_at = 3 + len(mixes)
    return call(function, x[None], *norm, *mixes, state, *borders, out, written=[-1, state_at])


@pytest.mark.parametrize("channels", WIDTHS)
@pytest.mark.parametrize("mixes", MIXES)
def test_norm_shift_mix_of_several_sequences(kernels, channels, mixes):
    x, norm, mix, state = shift_inputs(channels, mixes, sum(LENGTHS))
    out, after = run_shift(kernels, x, norm, mix, state, LENGTHS, SLOTS)
    wide = [a.astype(np.float64) for a in (x, *norm, mix, state)]
    expected, expected_state = twins.norm_shift_mix(*wide, np.cumsum(LENGTHS), SLOTS, 1e-5)
    assert error(out, expected) < 1e-6 and error(after[SLOTS], expected_state[SLOTS]) < 1e-6
    untouched = np.delete(np.arange(POOL), SLOTS)
    assert after[untouched].tobytes() == state[untouched].tobytes()


@pytest.mark.parametrize("channels", WIDTHS)
@pytest.mark.parametrize("mixes", MIXES)
@pytest.mark.parametrize("lengths", [LENGTHS, [1, 1, 1, 1]], ids=["prefill", "decode"])
def test_norm_shift_mix_without_slots(kernels, channels, mixes, lengths):
    """State b belongs to sequence b and no input changes; bit for bit what is updated in place."""
    x, norm, mix, pool = shift_inputs(channels, mixes, sum(lengths))
    expected, updated = run_shift(kernels, x, norm, mix, pool, lengths, SLOTS)
    ends, none = np.cumsum(lengths).astype(np.int32), np.full(len(x), 99, np.int32)
    borders = call(kernels["functional_border_slots"], np.zeros(len(x), np.int32), ends, none, none, written=[-2, -1])
    args = [x[None], *norm, *mix[:, None, None], pool[SLOTS], *borders]
    outputs = np.full((mixes, *x.shape), np.nan, np.float32), np.full((len(lengths), channels), np.nan, np.float32)
    out, after = call(kernels[f"functional_shift_{channels}_{mixes}"], *args, *outputs, written=[-2, -1])
    assert out.tobytes() == expected.tobytes() and after.tobytes() == updated[SLOTS].tobytes()


@pytest.mark.parametrize("channels", WIDTHS)
@pytest.mark.parametrize("mixes", MIXES)
def test_norm_shift_mix_of_a_token(kernels, channels, mixes):
    """Both forms are right and agree bit for bit."""
    x, norm, mix, pool = shift_inputs(channels, mixes, 1)
    args, out = [x[None], *norm, *mix[:, None, None]], np.full((mixes, 1, channels), np.nan, np.float32)
    name, slot = f"token_shift_{channels}_{mixes}", np.array([5], np.int32)
    found, after = call(kernels[name], *args, pool, slot, out, written=[-1, len(args)])
    wide = [a.astype(np.float64) for a in (x, *norm, mix, pool)]
    expected, expected_state = twins.norm_shift_mix(*wide, np.array([1]), [5], 1e-5)
    assert error(found, expected) < 1e-6 and error(after[5], expected_state[5]) < 1e-6
    assert np.delete(after, 5, 0).tobytes() == np.delete(pool, 5, 0).tobytes()
    other = call(kernels[f"functional_{name}"], *args, pool[5:6], out, np.full_like(pool[:1], np.nan), written=[-2, -1])
    assert other[0].tobytes() == found.tobytes() and other[1].tobytes() == after[5:6].tobytes()


@pytest.mark.parametrize("channels", WIDTHS)
def test_norm_shift_mix_in_parallel_is_step_by_step(kernels, channels):
    """Rows run in parallel and the state changes in place: no row may see the state of the end."""
    x, norm, mix, state = shift_inputs(channels, 3, 400)
    steps, stepped = [], state
    for row in x:
        out, stepped = run_shift(kernels, row[None], norm, mix, stepped, [1], [5])
        steps.append(out)
    for _ in range(5):
        out, after = run_shift(kernels, x, norm, mix, state, [len(x)], [5])
        assert error(out, np.concatenate(steps, 1)) < 1e-6 and error(after, stepped) < 1e-6


@pytest.mark.parametrize("name, form", TABLES.items(), ids=TABLES)
def test_embedding(kernels, name, form):
    rng = np.random.default_rng(3)
    if isinstance(form, RowFloat):
        stored = [rng.normal(0.3, 1, (VOCAB, CHANNELS)).astype(form.dtype)]
        table = stored[0].astype(np.float32)
    else:
        fields = rng.integers(0, 2**form.bits, (VOCAB, form.padded(CHANNELS)))
        scale = rng.uniform(0.01, 0.1, (VOCAB, form.groups(CHANNELS))).astype(form.scale_dtype)
        stored = [twins.join_fields(fields, form.bits), scale]
        table = twins.dequantize(fields, scale.astype(np.float32), form.bits, form.group)[:, :CHANNELS]
    tokens = np.array([7, 0, VOCAB - 1, 7, 12], np.int32)
    out = np.full((1, len(tokens), CHANNELS), np.nan, np.float32)
    (out,) = call(kernels[f"embedding_{name}"], tokens, *stored, out, written=[-1])
    assert np.array_equal(out[0], table[tokens])
    (out,) = call(kernels[f"embedding_{name}"], np.array([-1, VOCAB], np.int32), *stored, out[:, :2], written=[-1])
    assert np.array_equal(out[0], table[[0, -1]])


EXACT = {"exp": np.exp, "sigmoid": twins.sigmoid, "silu": twins.ACTIVATIONS["silu"]}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("width", LANES)
def test_exponentials_from_minus_100_to_100(kernels, function, width):
    """Relative error 3e-7 where a float32 takes the result; beyond that they stay finite and close."""
    x = np.r_[np.linspace(-100, 100, 32000), np.linspace(-1, 1, 32000)].astype(np.float32)
    vectors = x.reshape(-1, width)
    (out,) = call(kernels[f"{function}_{width}"], vectors, np.full_like(vectors, np.nan), written=[-1])
    out, expected = out.reshape(-1).astype(np.float64), EXACT[function](x.astype(np.float64))
    inside = np.abs(x) <= 87 if function == "exp" else x >= -87
    assert (np.abs(out - expected) <= 3e-7 * np.abs(expected))[inside].all()
    outside = out[~inside]
    assert np.isfinite(outside).all()
    if function == "exp":
        limit = np.exp(87.0 * np.sign(x[~inside]))
        np.testing.assert_allclose(outside, limit, rtol=3e-7)
    else:
        assert np.abs(outside).max() < 2e-36

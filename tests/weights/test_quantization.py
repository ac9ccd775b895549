from __future__ import annotations

import itertools

import numpy as np
import pytest

from rwkv_mlc.errors import UserError
from rwkv_mlc.models import Parameter
from rwkv_mlc.quantization import group
from rwkv_mlc.quantization.group import GroupForm
from rwkv_mlc.quantization.schemes import SCHEMES, FloatForm, get_scheme

LAYOUTS = {  # scheme: bits, group, type of scale and arithmetic
    "q3f16_1": (3, 40, np.float16),
    "q4f16_0": (4, 32, np.float16),
    "q4f16_1": (4, 32, np.float16),
    "q4f16_2": (4, 32, np.float16),
    "q4f32_1": (4, 32, np.float32),
    "q8f16_1": (8, 32, np.float16),
}
SHAPES = [(3, 64), (5, 77), (2, 40), (7, 31), (1, 1), (4, 120), (9, 97)]


def linear(shape: tuple[int, int], role: str = "matrix") -> Parameter:
    return Parameter("model.x.weight", "x.weight", shape, role, part="x")


def matrix(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Rows of very different size, one of zeros, ties and powers of two among them."""
    rng = np.random.default_rng([seed, *shape])
    result = rng.normal(size=shape) * 10.0 ** rng.uniform(-6, 2, (shape[0], 1))
    result[-1] = np.round(result[-1] / np.abs(result[-1]).max() * 14) / 2
    result[shape[0] // 2] = 0.0 if shape[0] > 1 else result[0]
    return result.astype(np.float32)


def twin(weights: np.ndarray, bits: int, size: int, kind: type) -> tuple[list, list, list]:
    """Words, scales and values of a matrix, element by element, every operation rounded to ``kind``."""
    max_int = kind(2 ** (bits - 1) - 1)
    per_word = 32 // bits
    words, scales, values = [], [], []
    for row in weights.astype(kind):
        row_words, row_scales, row_values = [], [], []
        for start in range(0, len(row), size):
            members = row[start : start + size]
            scale = kind(max([kind(1e-4), *map(abs, members)]) / max_int)
            levels = [min(max(float(np.rint(kind(kind(w / scale) + max_int))), 0), 2 * int(max_int)) for w in members]
            row_scales.append(scale)
            row_values += [np.float32(level - int(max_int)) * np.float32(scale) for level in levels]
            levels += [0] * (size - len(levels))
            for first in range(0, size, per_word):
                word = levels[first : first + per_word]
                row_words.append(sum(int(level) << (k * bits) for k, level in enumerate(word)))
        words.append(row_words)
        scales.append(row_scales)
        values.append(row_values)
    return words, scales, values


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", LAYOUTS)
def test_stored_form_is_that_of_the_twin(name, shape):
    weights = matrix(shape)
    words, scales, values = twin(weights, *LAYOUTS[name])
    parameter, scheme = linear(shape), get_scheme(name)
    stored = scheme.quantize(parameter, weights)
    assert {key: (array.shape, array.dtype.name) for key, array in stored.items()} == scheme.stored(parameter)
    assert list(stored) == ["model.x.q_weight", "model.x.q_scale"]
    q_weight, q_scale = stored.values()
    if name == "q4f16_0":
        q_weight, q_scale = q_weight.T, q_scale.T
    np.testing.assert_array_equal(q_weight, np.array(words, np.uint32))
    np.testing.assert_array_equal(q_scale, np.array(scales))
    found = scheme.dequantize(parameter, stored)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array(values, np.float32))


@pytest.mark.parametrize("name", LAYOUTS)
def test_many_values_against_the_twin(name):
    weights = np.random.default_rng(1).normal(size=(40, 300)).astype(np.float32)
    words, scales, _ = twin(weights, *LAYOUTS[name])
    form = get_scheme(name).form("matrix")
    q_weight, q_scale = GroupForm(form.bits, form.group, form.scale_dtype).quantize(weights)
    np.testing.assert_array_equal(q_weight, np.array(words, np.uint32))
    np.testing.assert_array_equal(q_scale, np.array(scales))


@pytest.mark.parametrize("name", ["q3f16_1", "q4f16_1", "q4f32_1", "q8f16_1"])
def test_stored_form_is_that_of_mlc_llm(name):
    """The expression of mlc_llm's ``GroupQuantize._quantize``, with the floor, compiled by TVM."""
    tvm = pytest.importorskip("tvm")
    te, tirx = pytest.importorskip("tvm.te"), pytest.importorskip("tvm.tirx")
    bits, size, kind = LAYOUTS[name]
    weights = matrix((6, 130), seed=2).astype(kind)
    rows, columns = weights.shape
    groups, per_word, dtype = -(-columns // size), 32 // bits, weights.dtype.name
    max_int = tirx.const(2 ** (bits - 1) - 1, dtype)
    w, r = te.placeholder(weights.shape, dtype), te.reduce_axis((0, size))
    k = te.reduce_axis((0, per_word))

    def magnitude(i, j):
        inside = j * size + r < columns
        return te.max(tirx.if_then_else(inside, te.abs(w[i, j * size + r]), te.min_value(dtype)), axis=r)

    def level(i, j):
        q = tirx.round(w[i, j] / scale[i, j // size] + max_int)
        return tirx.min(tirx.max(q, tirx.const(0, dtype)), max_int * tirx.const(2, dtype)).astype("uint32")

    def packed(i, j):
        column = j * per_word + k
        value = levels[i, column] << (k * bits).astype("uint32")
        return te.sum(tirx.if_then_else(column < columns, value, tirx.const(0, "uint32")), axis=k)

    largest = te.compute((rows, groups), magnitude)
    scale = te.compute((rows, groups), lambda i, j: tirx.max(largest[i, j], tirx.const(1e-4, dtype)) / max_int)
    levels = te.compute(weights.shape, level)
    words = te.compute((rows, groups * size // per_word), packed)
    library = tvm.compile(tvm.IRModule({"main": te.create_prim_func([w, words, scale])}), target="llvm")
    q_weight, q_scale = tvm.runtime.empty(words.shape, "uint32"), tvm.runtime.empty(scale.shape, dtype)
    library["main"](tvm.runtime.tensor(weights), q_weight, q_scale)

    found = get_scheme(name).form("matrix").quantize(weights.astype(np.float32))
    np.testing.assert_array_equal(found[0], q_weight.numpy())
    np.testing.assert_array_equal(found[1], q_scale.numpy())


def test_bits_by_hand():
    weights = np.zeros((1, 32), np.float32)
    weights[0, :8] = [7, -7, 0, 1, -1, 3.4, 3.6, -6.5]  # levels 14, 0, 7, 8, 6, 10, 11, 0 (ties to even)
    q_weight, q_scale = get_scheme("q4f16_1").quantize(linear((1, 32)), weights).values()
    assert q_scale.tolist() == [[1.0]]
    assert [hex(word) for word in q_weight[0]] == ["0xba6870e", "0x77777777", "0x77777777", "0x77777777"]


def test_blocks_of_rows_do_not_show(monkeypatch):
    weights = matrix((50, 77), seed=3)
    form = get_scheme("q4f16_0").form("matrix")
    whole = form.quantize(weights)
    values = form.dequantize(*whole, weights.shape)
    monkeypatch.setattr(group, "BLOCK_ELEMENTS", 77 * 7)
    for found, expected in zip(form.quantize(weights), whole):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(form.dequantize(*whole, weights.shape), values)


def test_zero_group_stays_zero_with_a_finite_scale():
    for name in LAYOUTS:
        scheme, parameter, zeros = get_scheme(name), linear((4, 80)), np.zeros((4, 80), np.float32)
        stored = scheme.quantize(parameter, zeros)
        assert np.all(stored["model.x.q_scale"] > 0)
        np.testing.assert_array_equal(scheme.dequantize(parameter, stored), zeros)


def test_forms_by_role():
    q4, transposed = GroupForm(4, 32, "float16"), GroupForm(4, 32, "float16", transposed=True)
    half, single = FloatForm("float16"), FloatForm("float32")
    expected = {  # linear, embedding, head
        "q0f32": (single, single, single),
        "q0f16": (half, half, half),
        "q3f16_1": (GroupForm(3, 40, "float16"),) * 3,
        "q4f16_0": (transposed, q4, transposed),
        "q4f16_1": (q4, q4, q4),
        "q4f16_2": (q4, half, half),
        "q4f32_1": (GroupForm(4, 32, "float32"),) * 3,
        "q8f16_1": (GroupForm(8, 32, "float16"),) * 3,
    }
    assert expected.keys() == SCHEMES.keys()
    for name, forms in expected.items():
        scheme = SCHEMES[name]
        assert tuple(map(scheme.form, ("matrix", "embedding", "head"))) == forms
        assert scheme.form("vector") == single


@pytest.mark.parametrize("name", SCHEMES)
def test_a_vector_is_stored_exactly_whatever_its_shape(name):
    values = np.random.default_rng(4).normal(size=(2, 64)).astype(np.float32) * 1e-6
    decay = Parameter("model.blocks.0.attention.time_decay", "blocks.0.att.time_decay", (2, 64), "vector", "wkv")
    stored = get_scheme(name).quantize(decay, values)
    assert list(stored) == [decay.name] and stored[decay.name].dtype == np.float32
    np.testing.assert_array_equal(get_scheme(name).dequantize(decay, stored), values)


def test_float_schemes_round_to_their_type():
    weights = matrix((5, 7))
    exact, half = get_scheme("q0f32"), get_scheme("q0f16")
    for role in ("matrix", "embedding", "head"):
        parameter = linear(weights.shape, role)
        np.testing.assert_array_equal(exact.dequantize(parameter, exact.quantize(parameter, weights)), weights)
        stored = half.quantize(parameter, weights)
        assert stored[parameter.name].dtype == np.float16
        np.testing.assert_array_equal(half.dequantize(parameter, stored), weights.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("name", ["q0f16", "q4f16_1", "q8f16_1"])
def test_a_weight_beyond_float16_is_refused_by_name(name):
    weights = np.ones((2, 64), np.float32)
    weights[1, 3] = -70000
    with pytest.raises(UserError, match="x.weight holds a value of magnitude 70000.*q4f32_1"):
        get_scheme(name).quantize(linear(weights.shape), weights)
    get_scheme("q4f32_1").quantize(linear(weights.shape), weights)


@pytest.mark.parametrize("name", [*LAYOUTS, "q0f16"])
def test_error_is_that_of_the_dequantized_tensor(name):
    weights = np.random.default_rng(5).normal(size=(6, 100)).astype(np.float32)
    weights[4, 90] = 12.0
    scheme, parameter = get_scheme(name), linear(weights.shape)
    stored = scheme.quantize(parameter, weights)
    lost = scheme.dequantize(parameter, stored).astype(np.float64) - weights
    rms = np.sqrt(np.mean(weights.astype(np.float64) ** 2))
    size = LAYOUTS[name][1] if name in LAYOUTS else weights.shape[1]
    groups = {
        (row, start): np.sqrt(np.mean(lost[row, start : start + size] ** 2)) / rms
        for row, start in itertools.product(range(6), range(0, 100, size))
    }
    error = scheme.error(parameter, weights, stored)
    assert error.relative_rms == pytest.approx(np.sqrt(np.mean(lost**2)) / rms)
    assert error.worst_group == pytest.approx(max(groups.values()))
    assert (error.worst_row, error.worst_column) == max(groups, key=groups.get)


def test_error_of_an_exact_tensor_is_zero():
    for weights in (np.zeros((2, 64), np.float32), np.ones((2, 64), np.float32)):
        parameter, scheme = linear(weights.shape), get_scheme("q4f32_1")
        error = scheme.error(parameter, weights, scheme.quantize(parameter, weights))
        assert (error.relative_rms, error.worst_group) == (0.0, 0.0)


def test_unknown_scheme_lists_names_and_the_nearest():
    with pytest.raises(UserError, match="'q4f16_3'; did you mean q4f16_2.*q0f32, q0f16, q3f16_1"):
        get_scheme("q4f16_3")
    with pytest.raises(UserError, match="did you mean"):
        get_scheme("")

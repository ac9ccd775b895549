"""Products that leave zeros out: bit for bit what they are with every input listed, and what NumPy says; and the tiles
that they read, which prompts read as well."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pytest

from rwkv_mlc.quantization.layouts import LAYOUTS
from support import kernel_twins as twins
from support.cpu_products import apart, has, quantized_bytes, read_outliers
from support.kernel_build import HOST_TARGET, build, call, error
from tir_kernels.cpu.gemm import gemm
from tir_kernels.cpu.gemm_bytes import TILES, gemm_bytes
from tir_kernels.cpu.gemv import gemv
from tir_kernels.cpu.integer_dot import INTEGER_DOTS
from tir_kernels.cpu.list_inputs import list_inputs
from tir_kernels.cpu.lists import AHEAD, MOST
from tir_kernels.cpu.outliers import OutlierLists
from tir_kernels.cpu.packed import PackedFloat, PackedGroup, Tiled, TiledFloat, TiledGroup
from tir_kernels.cpu.quantize_activation import DIGITS, quantize_activation
from tir_kernels.cpu.quantize_bytes import quantize_bytes
from tir_kernels.cpu.quantize_inputs import quantize_inputs
from tir_kernels.cpu.sparse_gemv import sparse_gemv
from tir_kernels.product import Matrix

FORMS: dict[str, Tiled] = {
    "float32": TiledFloat("float32"),
    "float16": TiledFloat("float16"),
    "q4": TiledGroup(4, 32, "float16"),
    "q4_float32": TiledGroup(4, 32, "float32"),
    "q8": TiledGroup(8, 32, "float16"),
}
GROUP_FORMS = [name for name, form in FORMS.items() if isinstance(form, TiledGroup)]
X86_DOTS = ["vnni", "avx512", "avxvnni", "avx2", "ssse3"]
# Whole tiles and groups; outputs that end within a tile and a block, inputs that end within a group, a line and a four.
SHAPES = {"even": (256, 192), "odd": (200, 211)}
ZEROS = [0, 0.3, 0.5, 0.6, 0.75, 0.9, 0.99, 1]

every_form = pytest.mark.parametrize("form", FORMS)
every_group_form = pytest.mark.parametrize("form", GROUP_FORMS)
every_shape = pytest.mark.parametrize("shape", SHAPES)
every_dot = pytest.mark.parametrize("dot", [dot for dot in X86_DOTS if has(dot)])


@dataclass(frozen=True)
class Weights:
    """A random matrix in tiles, in row blocks, and its values [N, K] in float64. Padded fields hold noise."""

    tiles: tuple[np.ndarray, ...]
    blocks: tuple[np.ndarray, ...]
    dense: np.ndarray


@lru_cache(None)
def weights(form_name: str, shape: str) -> Weights:
    form, (rows, columns) = FORMS[form_name], SHAPES[shape]
    rng = np.random.default_rng(rows)
    if isinstance(form, TiledFloat):
        stored = rng.normal(0.1, 1, (rows, columns)).astype(form.dtype)
        return Weights((twins.pack(stored, form.tile),), (twins.pack(stored),), stored.astype(np.float64))
    fields = rng.integers(0, 2**form.bits, (rows, form.padded(columns)))
    scale = (rng.uniform(0.3, 3, (rows, form.groups(columns))) / form.max_int).astype(form.scale_dtype)
    dense = twins.dequantize(fields, scale.astype(np.float64), form.bits, form.group)[:, :columns]
    blocks = twins.pack(twins.join_fields(fields, form.bits)), twins.pack(scale)
    return Weights((tiles_of_fields(fields, form), tiles_of_scales(scale, form)), blocks, dense)


def tiles_of_fields(fields: np.ndarray, form: TiledGroup) -> np.ndarray:
    """[N, K] -> uint32 [tiles, K, 16]."""
    octets = twins.pack(fields.astype(np.uint8), form.tile)
    if form.bits == 4:
        octets = octets[..., :64] | octets[..., 64:] << 4
    return np.ascontiguousarray(octets).view(np.uint32)


def tiles_of_scales(scale: np.ndarray, form: TiledGroup) -> np.ndarray:
    """[N, G] -> [tiles, G, rows of a tile]."""
    packed = twins.pack(scale, form.tile)
    row = np.arange(form.tile)
    a, b, c = row % 64 // 16, row % 16 // 4, row % 4
    result = np.empty_like(packed)
    result[..., row // 64 * 64 + 16 * b + 4 * a + c] = packed
    return result


def group_of(form: Tiled, columns: int) -> int:
    return form.group if isinstance(form, TiledGroup) else columns


@lru_cache(None)
def compiled(form_name: str, shape: str, dot: str | None = None, target: tuple = tuple(HOST_TARGET.items())):
    """What lists the inputs, with and without leaving some out, and the product, plain and with what may follow it."""
    form, (rows, columns) = FORMS[form_name], SHAPES[shape]
    functions = {
        "plain": sparse_gemv(rows, columns, form, dot),
        "fused": sparse_gemv(rows, columns, form, dot, gated=True, residual=True),
    }
    for name, skip in (("list", True), ("list_all", False)):
        functions[name] = (
            quantize_inputs(columns, form, skip) if dot else list_inputs(columns, group_of(form, columns), skip)
        )
    if dot:
        packed = PackedGroup(form.bits, form.group, form.scale_dtype)
        functions["dense"] = gemv((Matrix(rows),), columns, packed, dot)
        functions["quantize"] = quantize_activation(columns, packed)
    return build(functions, dict(target))


def run_list(kernels, name: str, form: Tiled, x: np.ndarray, integers: bool) -> list[np.ndarray]:
    """What ``list_inputs`` or ``quantize_inputs`` makes of x [1, T, K]."""
    _, rows, columns = x.shape
    if integers:
        padded, groups = form.padded(columns), form.groups(columns)
        outputs = [
            np.full((rows, DIGITS, padded // 4), -1, np.int32),
            np.full((rows, padded + AHEAD), -1, np.int32),
            np.full((rows, groups + 1), -1, np.int32),
            np.full((rows, groups), np.nan, np.float32),
            np.full((rows, DIGITS, groups), -1, np.int32),
            np.full((rows, OutlierLists(columns, form).size), -1, np.int32),
        ]
    else:
        outputs = [
            np.full((rows, columns + AHEAD), np.nan, np.float32),
            np.full((rows, columns + AHEAD), -1, np.int32),
            np.full((rows, -(-columns // group_of(form, columns)) + 1), -1, np.int32),
        ]
    return call(kernels[name], x, *outputs, written=range(-len(outputs), 0))


def product(kernels, form_name: str, shape: str, lists: list[np.ndarray], *after: np.ndarray) -> np.ndarray:
    rows = SHAPES[shape][0]
    out = np.full((1, len(lists[0]), rows), np.nan, np.float32)
    name = "fused" if after else "plain"
    return call(kernels[name], *lists, *weights(form_name, shape).tiles, *after, out, written=[-1])[0]


def activations(columns: int, zeros: float, rows: int = 3) -> np.ndarray:
    """x [1, T, K] as relu^2 leaves it, with so many zeros, and groups that have none else."""
    rng = np.random.default_rng(columns)
    x = rng.normal(size=(1, rows, columns)) ** 2 * np.exp(np.sin(np.arange(columns) / 40))
    x[rng.random(x.shape) < zeros] = 0
    x[:, 0, 32:100] = 0
    x[:, 1, -30:] = 0
    return x.astype(np.float32)


def check(
    form_name: str, shape: str, dot: str | None, zeros: float, tolerance: float, outlier: float = 1, **target
) -> None:
    """One pattern of zeros: the same bits with all inputs listed, with single rows and, of integers, from ``gemv``."""
    kernels, form = compiled(form_name, shape, dot, **target), FORMS[form_name]
    x = activations(SHAPES[shape][1], zeros)
    x[..., [5, 9, 130]] *= outlier
    lists = run_list(kernels, "list", form, x, bool(dot))
    out = product(kernels, form_name, shape, lists)
    everything = run_list(kernels, "list_all", form, x, bool(dot))
    assert product(kernels, form_name, shape, everything).tobytes() == out.tobytes()
    for t in range(x.shape[1]):
        alone = run_list(kernels, "list", form, x[:, t : t + 1], bool(dot))
        assert product(kernels, form_name, shape, alone).tobytes() == out[:, t].tobytes()
    expected = x[0].astype(np.float64) @ weights(form_name, shape).dense.T
    if zeros < 1:
        assert error(out[0], expected) < tolerance
    else:
        assert not out.any()
    if dot:
        assert dense_product(kernels, form_name, shape, x).tobytes() == out.tobytes()


def dense_product(kernels, form_name: str, shape: str, x: np.ndarray) -> np.ndarray:
    """The product of ``gemv`` with the same matrix in row blocks."""
    form, (rows, columns) = FORMS[form_name], SHAPES[shape]
    groups, tokens = form.groups(columns), x.shape[1]
    outputs = [
        np.full((1, tokens, DIGITS, groups * form.group // 4), -1, np.int32),
        np.full((1, tokens, groups), np.nan, np.float32),
        np.full((1, tokens, DIGITS, groups), -1, np.int32),
        np.full((1, tokens, OutlierLists(columns, form).size), -1, np.int32),
    ]
    inputs = call(kernels["quantize"], x, *outputs, written=[-4, -3, -2, -1])
    out = np.full((1, tokens, rows), np.nan, np.float32)
    return call(kernels["dense"], *inputs, *weights(form_name, shape).blocks, out, written=[-1])[0]


@every_form
@every_shape
@pytest.mark.parametrize("zeros", ZEROS)
def test_float_products(form, shape, zeros):
    check(form, shape, None, zeros, 1e-6)


@every_group_form
@every_dot
@every_shape
@pytest.mark.parametrize("zeros", ZEROS)
def test_integer_products(form, dot, shape, zeros):
    check(form, shape, dot, zeros, 2e-6)


@every_group_form
@every_dot
@every_shape
@pytest.mark.parametrize("zeros", [0, 0.6])
def test_integer_products_beside_outliers(form, dot, shape, zeros):
    check(form, shape, dot, zeros, 2e-6, outlier=1e5)


@every_form
@pytest.mark.parametrize("zeros", [0, 0.75])
def test_on_a_cpu_that_promises_nothing(form, zeros):
    check(form, "odd", None, zeros, 1e-6, target=(("kind", "llvm"),))


@every_form
@every_shape
@pytest.mark.parametrize("dot", [None, *(dot for dot in X86_DOTS if has(dot))][:2])
def test_what_follows_a_product(form, shape, dot):
    if dot and form not in GROUP_FORMS:
        pytest.skip("floats have no integer products")
    kernels, (rows, columns) = compiled(form, shape, dot), SHAPES[shape]
    lists = run_list(kernels, "list", FORMS[form], activations(columns, 0.8), bool(dot))
    gate, residual = np.random.default_rng(rows).normal(size=(2, 1, 3, rows)).astype(np.float32)
    out, plain = product(kernels, form, shape, lists, gate, residual), product(kernels, form, shape, lists)
    assert error(out, plain.astype(np.float64) * gate + residual) < 1e-6


@pytest.mark.parametrize("zeros", ZEROS)
def test_lists_of_floats(zeros):
    columns = 211
    x = activations(columns, zeros)
    values, inputs, bounds = run_list(compiled("q4", "odd"), "list", FORMS["q4"], x, False)
    for t in range(3):
        nonzero = np.flatnonzero(x[0, t])
        listed = np.arange(columns) if len(nonzero) >= int(MOST * columns) else nonzero
        assert np.array_equal(inputs[t, : len(listed)], listed)
        assert np.array_equal(values[t, : len(listed)], x[0, t, listed])
        assert np.array_equal(bounds[t], [np.sum(listed < end) for end in (0, 32, 64, 96, 128, 160, 192, 224)])
        assert not inputs[t, len(listed) : len(listed) + AHEAD].any()


@pytest.mark.skipif(not has("ssse3"), reason="the product of this test is one of x86-64")
@pytest.mark.parametrize("zeros", ZEROS)
def test_lists_of_integers(zeros):
    """Fours of a group, filled up with zero digits of input 0; inputs that are rounded to zero are left out."""
    columns, form = 211, FORMS["q4"]
    x = activations(columns, zeros)
    x[0, :, ::7] *= 1e-9
    digits, inputs, bounds, scales, offsets, outliers = run_list(compiled("q4", "odd", "ssse3"), "list", form, x, True)
    whole, exact_scales = twins.quantize_activation(x[0].astype(np.float64), form.group)
    np.testing.assert_allclose(scales, exact_scales, rtol=1e-6)
    assert read_outliers(outliers, OutlierLists(columns, form)) == apart(x[0], form)
    for t in range(3):
        dense = np.count_nonzero(x[0, t]) >= int(MOST * columns)
        listed = np.arange(form.padded(columns)) if dense else np.flatnonzero(whole[t])
        octets = np.ascontiguousarray(digits[t]).view(np.int8).astype(np.int32)
        assert bounds[t, 0] == 0
        for g in range(form.groups(columns)):
            first, last = bounds[t, g : g + 2] * 4
            of_group = listed[listed // form.group == g]
            padding = -len(of_group) % 4
            assert np.array_equal(inputs[t, first:last], np.pad(of_group, (0, padding)))
            found = octets[:, first:last]
            assert not found[:, len(of_group) :].any() and np.abs(found).max(initial=0) <= 64
            value = found[0] + 128 * found[1] + 16384 * found[2]
            assert np.abs(value[: len(of_group)] - whole[t, of_group]).max(initial=0) <= 1
            assert np.array_equal(offsets[t, :, g], -form.max_int * found.sum(1))
        assert not inputs[t, last : last + AHEAD].any()


@every_form
@every_shape
@pytest.mark.parametrize("tile", [(6, 4), (6, 1), (2, 1)])
def test_prompts_read_tiles(form, shape, tile):
    """They give to the bit what row blocks give."""
    rows, columns = SHAPES[shape]
    tiled = FORMS[form]
    packed = (
        PackedFloat(tiled.dtype)
        if isinstance(tiled, TiledFloat)
        else PackedGroup(tiled.bits, tiled.group, tiled.scale_dtype)
    )
    matrices = (Matrix(rows),)
    kernels = build({"tiles": gemm(matrices, columns, tiled, tile), "blocks": gemm(matrices, columns, packed, tile)})
    x, stored = activations(columns, 0.5, rows=9), weights(form, shape)
    out = np.full((1, 9, rows), np.nan, np.float32)
    (from_tiles,) = call(kernels["tiles"], x, *stored.tiles, out, written=[-1])
    (from_blocks,) = call(kernels["blocks"], x, *stored.blocks, out, written=[-1])
    assert from_tiles.tobytes() == from_blocks.tobytes()
    assert error(from_tiles[0], x[0].astype(np.float64) @ stored.dense.T) < 1e-6


@every_group_form
@every_shape
@pytest.mark.parametrize("dot", [dot for dot in TILES if has(dot)])
@pytest.mark.parametrize("places", [1, 2, 3])
def test_rounded_prompts_read_tiles(form, shape, dot, places):
    """They give to the bit what row blocks give."""
    (rows, columns), tiled = SHAPES[shape], FORMS[form]
    packed = PackedGroup(tiled.bits, tiled.group, tiled.scale_dtype)
    x, stored, outs = activations(columns, 0.5, rows=9), weights(form, shape), []
    for kind, tensors in ((tiled, stored.tiles), (packed, stored.blocks)):
        product = gemm_bytes((Matrix(rows),), columns, kind, places, dot)
        kernels = build({"quantize": quantize_bytes(columns, kind, places), "product": product})
        inputs = quantized_bytes(kernels["quantize"], kind, places, x)
        out = np.full((1, 9, rows), np.nan, np.float32)
        outs += call(kernels["product"], *inputs, *tensors, out, written=[-1])
    assert outs[0].tobytes() == outs[1].tobytes()


@every_form
@every_shape
@pytest.mark.parametrize("transposed", [False, True])
def test_layouts(form, shape, transposed):
    """The stored tensors become the tiles, as a whole and in parts."""
    tiled, (rows, columns) = FORMS[form], SHAPES[shape]
    rng = np.random.default_rng(columns)
    if isinstance(tiled, TiledFloat):
        if transposed:
            pytest.skip("floats are not stored transposed")
        stored = rng.normal(size=(rows, columns)).astype(tiled.dtype)
        layouts = {"lines_16" if tiled.dtype == "float16" else "row_blocks": (stored, twins.pack(stored, tiled.tile))}
    else:
        fields = rng.integers(0, 2**tiled.bits, (rows, tiled.padded(columns)))
        scale = rng.normal(size=(rows, tiled.groups(columns))).astype(tiled.scale_dtype)
        prefix = "transposed_" * transposed
        layouts = {
            f"{prefix}lines_{tiled.bits}": (twins.join_fields(fields, tiled.bits), tiles_of_fields(fields, tiled)),
            f"{prefix}line_scales_{tiled.bits}": (scale, tiles_of_scales(scale, tiled)),
        }
    for name, (stored, expected) in layouts.items():
        layout, stored = LAYOUTS[name], stored.T if transposed else stored
        assert layout.shape(stored.shape) == expected.shape
        assert np.array_equal(layout.permute(stored), expected)
        parts = np.zeros_like(expected)
        for taken, place in layout.parts(stored.shape, 1):
            parts[place] = layout.permute(np.ascontiguousarray(stored[taken]))
        assert np.array_equal(parts, expected)


def test_every_dot_is_tried():
    assert set(X86_DOTS) <= set(INTEGER_DOTS)

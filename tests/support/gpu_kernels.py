"""The GPU kernels at several shapes, and how they are held to their twins."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from support import kernel_twins as twins
from support.cpu_products import unread
from support.kernel_build import call, error
from tir_kernels.gpu.embedding import embedding
from tir_kernels.gpu.fill import fill
from tir_kernels.gpu.gemm import gemm
from tir_kernels.gpu.gemv import gemv
from tir_kernels.gpu.group_norm import group_norm
from tir_kernels.gpu.last_rows import last_rows
from tir_kernels.gpu.layer_norm import layer_norm
from tir_kernels.gpu.norm_shift_mix import norm_shift_mix
from tir_kernels.gpu.sample import sample
from tir_kernels.gpu.stream import stream
from tir_kernels.gpu.wkv4 import wkv4
from tir_kernels.gpu.wkv5 import wkv5
from tir_kernels.product import Matrix
from tir_kernels.rows import RowFloat, RowGroup, Rows

FORMS = {  # and the activations' dtype
    "float32": (RowFloat("float32"), "float32"),
    "float16": (RowFloat("float16"), "float16"),
    "q4": (RowGroup(4, 32, "float16"), "float16"),
    "q4_float32": (RowGroup(4, 32, "float32"), "float32"),
    "q8": (RowGroup(8, 32, "float16"), "float16"),
    "q3": (RowGroup(3, 40, "float16"), "float16"),
}
ROUNDED = 1e-3  # of what is rounded to float16
EXACT = 2e-6  # of float32 sums


@dataclass(frozen=True)
class Product:
    """Matrices that share one launch, K inputs each, of so many planes."""

    matrices: tuple[Matrix, ...]
    columns: int
    planes: int = 1
    gated: bool = False
    residual: bool = False
    float16_lanes: int = 8
    x_dtype: str | None = None
    forms: tuple[str, ...] = field(default=tuple(FORMS))


PRODUCTS = {
    # Rows that leave part of a block, inputs that end within a group, a word and a vector.
    "several": Product(
        (Matrix(70, "squared_relu", "float16"), Matrix(64, plane=1), Matrix(25, "silu", plane=2)), 205, 3
    ),
    "ragged": Product((Matrix(33), Matrix(129, "sigmoid", plane=1)), 104, 2, float16_lanes=4),
    # Whole groups of 32 and of 40; what follows a product; float32 inputs as precision overrides ask for.
    "single": Product((Matrix(88, "sigmoid"),), 160, gated=True, residual=True),
    "float32 inputs": Product((Matrix(97),), 96, residual=True, x_dtype="float32", forms=("float16", "q4")),
    # All threads of a block along a row, once and several times.
    "wide": Product((Matrix(9), Matrix(6, plane=1)), 2048, 2, forms=("float32", "float16", "q4", "q8")),
    # Planes out of order, one of them twice, others that no matrix reads.
    "planes": Product(
        (Matrix(70, plane=3), Matrix(24), Matrix(65, plane=3), Matrix(9, plane=1)), 96, 5, forms=("q4", "float16")
    ),
    "widest": Product((Matrix(5),), 8192, forms=("q4", "float16")),
}
CASES = [(name, form) for name, product in PRODUCTS.items() for form in product.forms]
KERNELS = {"gemv": (gemv, {}), "gemv of 4 tokens": (gemv, {"tokens": 4}), "gemm": (gemm, {})}
WIDTHS = [48, 50, 1024, 1600]
HEADS = [(2, 64), (3, 8), (5, 12), (3, 97)]
VOCAB, CHANNELS = 23, 300
TOKENS = 1003  # some threads have none, one less than the others
EPS = 64e-5
LENGTHS, SLOTS, POOL = [5, 1, 17, 2], [4, 0, 6, 2], 7


def kernel_of(kind: str, name: str, form: str):
    product, (factory, options), (stored, dtype) = PRODUCTS[name], KERNELS[kind], FORMS[form]
    fused = {
        "planes": product.planes,
        "gated": product.gated,
        "residual": product.residual,
        "float16_lanes": product.float16_lanes,
    }
    return factory(product.matrices, product.columns, stored, product.x_dtype or dtype, **fused, **options)


def all_kernels(cases: Sequence[tuple[str, str]] = CASES) -> dict:
    kernels = {}
    for name, form in cases:
        for kind in KERNELS:
            kernels[identifier(kind, name, form)] = kernel_of(kind, name, form)
    for c in WIDTHS:
        kernels[f"layer_norm_{c}"] = layer_norm(c, 1e-5)
        for n in (1, 4):
            kernels[f"shift_{c}_{n}"] = norm_shift_mix(c, n, 1e-5, "prefill", "float16", in_place=True)
            kernels[f"functional_shift_{c}_{n}"] = norm_shift_mix(c, n, 1e-5, "prefill", "float16")
            kernels[f"decode_shift_{c}_{n}"] = norm_shift_mix(c, n, 1e-5, "decode", parts=2, in_place=True)
            kernels[f"functional_decode_shift_{c}_{n}"] = norm_shift_mix(c, n, 1e-5, "decode", parts=2)
    for heads, size in HEADS:
        kernels[f"group_norm_{heads}x{size}"] = group_norm(heads, size, EPS, False)
        kernels[f"gated_group_norm_{heads}x{size}"] = group_norm(heads, size, EPS, True, "float16")
    kernels |= {f"embedding_{name}": embedding(VOCAB, CHANNELS, form) for name, (form, _) in FORMS.items()}
    kernels |= {"last_rows": last_rows(CHANNELS), "stream": stream(), "fill": fill()}
    kernels["wkv4"] = wkv4(50, "prefill", in_place=True, dtype="float16")
    kernels["wkv5"] = wkv5(2, 8, "prefill", in_place=True)
    kernels["sample"] = sample(TOKENS)
    return kernels


def identifier(*parts: str) -> str:
    return "_".join(parts).replace(" ", "_")


def normal(rng, shape, dtype="float32") -> np.ndarray:
    return rng.normal(0.2, 1, shape).astype(dtype)


def weights(form: Rows, rows: int, columns: int) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """The arguments of a random matrix, and its values [N, K] in float64. Padded fields hold noise."""
    rng = np.random.default_rng(rows)
    if isinstance(form, RowFloat):
        stored = normal(rng, (rows, columns), form.dtype)
        return (stored,), stored.astype(np.float64)
    fields = rng.integers(0, 2**form.bits, (rows, form.padded(columns)))
    scale = (rng.uniform(0.3, 3, (rows, form.groups(columns))) / form.max_int).astype(form.scale_dtype)
    values = twins.dequantize(fields, scale.astype(np.float64), form.bits, form.group)
    return (twins.join_fields(fields, form.bits), scale), values[:, :columns]


def check_product(function, name: str, form: str, rows: int) -> None:
    product, (stored, dtype), rng = PRODUCTS[name], FORMS[form], np.random.default_rng(rows)
    shape = (product.planes, rows, product.columns)
    x = (normal(rng, shape) / np.sqrt(product.columns)).astype(product.x_dtype or dtype)
    x[unread(product)] = np.nan
    arrays, dense = zip(*(weights(stored, matrix.rows, product.columns) for matrix in product.matrices))
    gate, residual = normal(rng, (2, 1, rows, product.matrices[0].rows))
    extra = [gate] * product.gated + [residual] * product.residual
    outs = [np.full((1, rows, matrix.rows), np.nan, matrix.dtype) for matrix in product.matrices]
    outs = call(function, x, *sum(arrays, ()), *extra, *outs, written=range(-len(outs), 0))
    for i, (matrix, out) in enumerate(zip(product.matrices, outs)):
        after = (gate[0] if product.gated else 1, residual[0] if product.residual else 0)
        expected = twins.product(x[matrix.plane].astype(np.float64), dense[i], matrix.activation, *after)
        assert error(out[0], expected) < (ROUNDED if matrix.dtype == "float16" else 3 * EXACT)


def affine(rng, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias [C]."""
    return tuple(rng.normal([[1], [0.2]], 0.3, (2, channels)).astype(np.float32))


def check_layer_norm(function, channels: int, rows: int) -> None:
    rng = np.random.default_rng(0)
    x, norm = rng.normal(3, 2, (rows, channels)).astype(np.float32), affine(rng, channels)
    (out,) = call(function, x[None], *norm, np.full_like(x[None], np.nan), written=[-1])
    assert error(out[0], twins.layer_norm(x.astype(np.float64), *norm, 1e-5)) < EXACT


def check_group_norm(function, heads: int, size: int, gated: bool = False) -> None:
    """What is gated is rounded to float16."""
    rng = np.random.default_rng(1)
    spread, center = rng.uniform(0.2, 5, (6, heads, 1)), rng.normal(0.5, 2, (6, heads, 1))
    x = rng.normal(center, spread, (6, heads, size)).reshape(6, -1).astype(np.float32)
    norm, gate = affine(rng, x.shape[1]), normal(rng, x.shape)
    expected = twins.group_norm(x.astype(np.float64), *norm, heads, EPS) * (gate if gated else 1)
    out = np.full(x[None].shape, np.nan, np.float16 if gated else np.float32)
    (out,) = call(function, x[None], *norm, *([gate[None]] if gated else []), out, written=[-1])
    assert error(out[0], expected) < (ROUNDED if gated else EXACT)


def shift_inputs(channels: int, count: int, rows: int) -> tuple:
    """x [T, C], (weight, bias), mixes [n, C], states [S, C]."""
    rng = np.random.default_rng(2)
    x, norm = rng.normal(1, 2, (rows, channels)).astype(np.float32), affine(rng, channels)
    return x, norm, rng.uniform(0.1, 0.95, (count, channels)).astype(np.float32), normal(rng, (POOL, channels))


def check_shift(kernels, channels: int, count: int, lengths: list[int], slots: list[int]) -> tuple:
    """In place; returns the outputs and the states of the sequences."""
    rows, decoding = sum(lengths), max(lengths) == 1
    x, norm, mixes, state = shift_inputs(channels, count, rows)
    ends = np.cumsum(lengths)
    kernel = kernels[f"{'decode_' if decoding else ''}shift_{channels}_{count}"]
    integers = [np.array(x, np.int32) for x in ([slots] if decoding else [ends, slots])]
    out = np.full((count, rows, channels), np.nan, "float32" if decoding else "float16")
    args = [x[None], *norm, *mixes[:, None, None], state, *integers, out]
    out, after = call(kernel, *args, written=[-1, 3 + count])
    wide = [a.astype(np.float64) for a in (x, *norm, mixes, state)]
    expected, expected_state = twins.norm_shift_mix(*wide, ends, slots, 1e-5)
    assert error(out, expected) < (EXACT if decoding else ROUNDED)
    assert error(after[slots], expected_state[slots]) < EXACT
    untouched = np.delete(np.arange(POOL), slots)
    assert after[untouched].tobytes() == state[untouched].tobytes()
    return out, after[slots]


def check_functional_shift(kernels, channels: int, count: int, lengths: list[int], slots: list[int]) -> None:
    """State b belongs to sequence b and no input changes; bit for bit what is updated in place."""
    expected, updated = check_shift(kernels, channels, count, lengths, slots)
    x, norm, mixes, state = shift_inputs(channels, count, sum(lengths))
    decoding = max(lengths) == 1
    kernel = kernels[f"functional_{'decode_' if decoding else ''}shift_{channels}_{count}"]
    integers = [] if decoding else [np.cumsum(lengths).astype(np.int32)]
    outputs = np.full_like(expected, np.nan), np.full_like(updated, np.nan)
    args = [x[None], *norm, *mixes[:, None, None], state[slots], *integers]
    out, after = call(kernel, *args, *outputs, written=[-2, -1])
    assert out.tobytes() == expected.tobytes() and after.tobytes() == updated.tobytes()


def check_wkv4(function) -> None:
    """The output that the next matrix reads is float16; the state stays float32."""
    rng = np.random.default_rng(5)
    r, k, v = normal(rng, (3, 9, 50))
    w, u = -np.exp(rng.uniform(-5, 1, 50)).astype(np.float32), normal(rng, 50)
    states = np.zeros((3, 4, 50), np.float32) + np.float32([[[0]], [[0]], [[-1e30]]])
    integers = [np.array(values, np.int32) for values in ([4, 9], [2, 1])]
    out = np.full((1, 9, 50), np.nan, np.float16)
    args = [r[None], k[None], v[None], w, u, *states, *integers, out]
    out, *after = call(function, *args, written=[-1, 5, 6, 7])
    for rows, slot in ((slice(0, 4), 2), (slice(4, 9), 1)):
        wide = [a.astype(np.float64) for a in (r[rows], k[rows], v[rows], w, u, *states[:, 0])]
        expected, expected_state = twins.wkv4(*wide)
        assert error(out[0, rows], expected) < ROUNDED
        assert all(error(a[slot], e) < EXACT for a, e in zip(after, expected_state))


def check_wkv5(
    function, heads: int = 2, size: int = 8, lengths: Sequence[int] = (4, 5), transposed: bool = False
) -> None:
    """Sequences in slots of their own, the last in the first one."""
    rng, turn = np.random.default_rng(6), (lambda s: s.swapaxes(-1, -2)) if transposed else (lambda s: s)
    ends = np.cumsum(lengths)
    slots = np.arange(len(lengths))[::-1] + 1
    r, k, v = normal(rng, (3, ends[-1], heads * size))
    w, u = rng.uniform(0.3, 1, (heads, size)).astype(np.float32), normal(rng, (heads, size))
    state = normal(rng, (len(lengths) + 2, heads, size, size))
    integers = [np.array(values, np.int32) for values in (ends, slots)]
    out = np.full((1, *r.shape), np.nan, np.float32)
    out, after = call(function, r[None], k[None], v[None], w, u, turn(state), *integers, out, written=[-1, 5])
    for length, end, slot in zip(lengths, ends, slots):
        rows = slice(end - length, end)
        expected, (expected_state,) = twins.wkv5(
            *(a.astype(np.float64) for a in (r[rows], k[rows], v[rows], w, u, state[slot]))
        )
        assert error(out[0, rows], expected) < EXACT
        assert error(turn(after[slot]), expected_state) < EXACT


def stuck(name: str):
    """The first place where an array is accessed becomes its first element."""

    def change(source: str) -> str:
        body = source.index("{")
        changed = re.sub(rf"\b{name}_ptr(\[| \+ )", rf"{name}_ptr\g<1>0 * ", source[body:], count=1)
        assert changed != source[body:]
        return source[:body] + changed

    return change

"""GPU forms of the kernels against their twins in float64 on every device of the fixture ``gpu``, and generated for every
other language.

What is half precision is float where an OpenCL device lacks it (PoCL on x86 does): see ``opencl_device``."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from support.gpu_kernels import (
    CASES,
    CHANNELS,
    FORMS,
    HEADS,
    KERNELS,
    LENGTHS,
    PRODUCTS,
    SLOTS,
    TOKENS,
    VOCAB,
    WIDTHS,
    all_kernels,
    check_functional_shift,
    check_group_norm,
    check_layer_norm,
    check_product,
    check_wkv4,
    check_wkv5,
    identifier,
    normal,
    weights,
)
from support.kernel_build import call, error
from support.opencl_device import source_of
from support.sampling import check_choices, check_faults
from tir_kernels.gpu.sample import memory_shape

CASES_ON = {
    "opencl": CASES,
    "vulkan": [*(("several", form) for form in FORMS), ("planes", "q4")],
    "cuda": [  # every form, every shape
        ("several", "q4"),
        ("several", "q3"),
        ("ragged", "float32"),
        ("ragged", "q8"),
        ("single", "float16"),
        ("float32 inputs", "q4"),
        ("wide", "q4_float32"),
        ("wide", "q4"),
        ("planes", "q4"),
        ("widest", "float16"),
    ],
}
ROWS = {"gemv": [1, 3], "gemv of 4 tokens": [1, 6], "gemm": [1, 3, 65]}


@pytest.fixture(scope="module")
def built() -> dict[str, Mapping]:
    """The kernels by device: pytest takes up a device again after others."""
    return {}


@pytest.fixture(scope="module")
def kernels(gpu, built) -> Mapping:
    if gpu.name not in built:
        built[gpu.name] = gpu.build(all_kernels(CASES_ON[gpu.name]))
    return built[gpu.name]


@pytest.mark.parametrize(
    "gpu, kind, name, form",
    [(gpu, kind, *case) for gpu, cases in CASES_ON.items() for kind in KERNELS for case in cases],
    indirect=["gpu"],
)
def test_products(kernels, kind, name, form):
    for rows in ROWS[kind]:
        check_product(kernels[identifier(kind, name, form)], name, form, rows)


@pytest.mark.parametrize("gpu", ["opencl", "vulkan"], indirect=True)
def test_products_saturate_in_half_precision(kernels):
    """What is too large for float16 becomes its largest value, not infinity."""
    name, form = "several", "float16"
    arrays = sum((weights(FORMS[form][0], m.rows, PRODUCTS[name].columns)[0] for m in PRODUCTS[name].matrices), ())
    outs = [np.full((1, 1, matrix.rows), np.nan, matrix.dtype) for matrix in PRODUCTS[name].matrices]
    x = np.full((3, 1, PRODUCTS[name].columns), 30, np.float16)
    squares, *_ = call(kernels[identifier("gemv", name, form)], x, *arrays, *outs, written=range(-3, 0))
    assert np.isfinite(squares).all() and squares.max() == np.finfo(np.float16).max


@pytest.mark.parametrize("channels", WIDTHS)
@pytest.mark.parametrize("rows", [1, 7])
def test_layer_norm(kernels, channels, rows):
    check_layer_norm(kernels[f"layer_norm_{channels}"], channels, rows)


@pytest.mark.parametrize("heads, size", HEADS)
def test_group_norm(kernels, heads, size):
    check_group_norm(kernels[f"group_norm_{heads}x{size}"], heads, size)
    check_group_norm(kernels[f"gated_group_norm_{heads}x{size}"], heads, size, gated=True)


@pytest.mark.parametrize("channels", WIDTHS)
@pytest.mark.parametrize("count", [1, 4])
def test_norm_shift_mix(kernels, channels, count):
    for lengths, slots in [(LENGTHS, SLOTS), ([9], [3]), ([1, 1, 1], [2, 6, 1])]:
        check_functional_shift(kernels, channels, count, lengths, slots)


@pytest.mark.parametrize("name", FORMS)
def test_embedding(kernels, name):
    stored, table = weights(FORMS[name][0], VOCAB, CHANNELS)
    tokens = np.array([7, 0, VOCAB - 1, 7, 12, -1, VOCAB], np.int32)
    out = np.full((1, len(tokens), CHANNELS), np.nan, np.float32)
    (out,) = call(kernels[f"embedding_{name}"], tokens, *stored, out, written=[-1])
    assert error(out[0], table[tokens.clip(0, VOCAB - 1)]) < 1e-7


def test_last_rows(kernels):
    x = normal(np.random.default_rng(4), (1, 25, CHANNELS))
    ends = np.cumsum(LENGTHS).astype(np.int32)
    (out,) = call(kernels["last_rows"], x, ends, np.full((1, 4, CHANNELS), np.nan, np.float32), written=[-1])
    assert np.array_equal(out[0], x[0, ends - 1])


def test_stream_reads_everything(kernels):
    x = np.arange(3 * 8192, dtype=np.float32).reshape(3, -1) % 1000
    (sums,) = call(kernels["stream"], x, np.full(3, np.nan, np.float32), written=[-1])
    np.testing.assert_allclose(sums, x.sum(1, dtype=np.float64), rtol=1e-6)


def test_fill_writes_everything(kernels):
    (x,) = call(kernels["fill"], np.full((3, 4096), np.nan, np.float32), written=[0])
    assert np.all(x == 1)


def test_wkv(kernels):
    check_wkv4(kernels["wkv4"])
    check_wkv5(kernels["wkv5"])


def test_sample(kernels):
    kinds = ["random weights", "peaked", "tied", "impossible ones"]
    check_choices(kernels["sample"], TOKENS, memory_shape(TOKENS), kinds=kinds)
    check_faults(kernels["sample"], TOKENS, memory_shape(TOKENS))


@pytest.mark.parametrize("target", ["cuda", "metal", "webgpu"])
def test_source_is_generated(target):
    """Metal's and WebGPU's vectors end at four elements."""
    options = {"cuda": {"arch": "sm_80"}}.get(target, {"max_num_threads": 256})
    wanted = "ragged" if target != "cuda" else "several"
    kernels = {name: kernel for name, kernel in all_kernels().items() if wanted in name or "gem" not in name}
    source = source_of(kernels, {"kind": target, **options})
    assert all(f"{name}_kernel" in source for name in kernels)

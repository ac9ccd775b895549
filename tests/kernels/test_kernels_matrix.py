"""Matrix products in every stored form against float64 products with the dequantized weights."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest

from support import kernel_twins as twins
from support.cpu_products import CALLS, CPU_FLAGS, FORMS, GROUP_FORMS, activations, check, has, quantized
from support.kernel_build import HOST_TARGET, build
from tir_kernels.cpu.gemm import gemm
from tir_kernels.cpu.gemv import gemv
from tir_kernels.cpu.quantize_activation import quantize_activation
from tir_kernels.product import Matrix

ROWS = [1, 5, 7, 13]


@lru_cache(None)
def compiled(form_name: str, target: tuple = tuple(HOST_TARGET.items()), tile: tuple[int, int] = (6, 4)):
    """All kernels of a form; the integer ones where this machine has the instructions."""
    form, functions = FORMS[form_name], {}
    for name, c in CALLS.items():
        shared = dict(planes=c.planes, gated=c.gated, residual=c.residual)
        functions[f"gemv_{name}"] = gemv(c.matrices, c.columns, form, **shared)
        functions[f"gemm_{name}"] = gemm(c.matrices, c.columns, form, tile, **shared)
        if form_name in GROUP_FORMS:
            functions[f"quantize_{name}"] = quantize_activation(c.columns, form)
            if dict(target) == HOST_TARGET:
                for dot in filter(has, CPU_FLAGS):
                    functions[f"{dot}_{name}"] = gemv(c.matrices, c.columns, form, dot, **shared)
    return build(functions, dict(target))


every_call = pytest.mark.parametrize("name", CALLS)
every_rows = pytest.mark.parametrize("rows", ROWS)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kernel", ["gemv", "gemm"])
@every_call
@every_rows
def test_float_products(form, kernel, name, rows):
    check(compiled(form), FORMS[form], kernel, name, rows, 1e-6)


@pytest.mark.parametrize("form", GROUP_FORMS)
@pytest.mark.parametrize("dot", CPU_FLAGS)
@every_call
@every_rows
def test_integer_products(form, dot, name, rows):
    if not has(dot):
        pytest.skip(f"this CPU lacks {' and '.join(CPU_FLAGS[dot])}")
    check(compiled(form), FORMS[form], dot, name, rows, 2e-6)


@pytest.mark.parametrize("form", ["float16", "q3"])
@pytest.mark.parametrize("kernel", ["gemv", "gemm"])
@every_call
def test_on_a_cpu_that_promises_nothing(form, kernel, name):
    """The baseline of the architecture, with the smaller register tile it is given."""
    check(compiled(form, (("kind", "llvm"),), (4, 1)), FORMS[form], kernel, name, 7, 1e-6)


@pytest.mark.parametrize("form", GROUP_FORMS)
@every_call
def test_quantize_activation(form, name):
    x = activations(2, 5, CALLS[name].columns)
    digits, scales, offsets, outliers = quantized(compiled(form), FORMS[form], name, x)
    form = FORMS[form]
    for i in range(len(x)):
        integers, exact_scales = twins.quantize_activation(x[i].astype(np.float64), form.group)
        found = twins.digits_of_activation(digits[i], form.quads, form.fields)
        assert np.abs(found).max() <= 64
        whole = found[:, 0] + 128 * found[:, 1] + 16384 * found[:, 2]
        assert np.abs(whole - integers).max() <= 1 and np.abs(whole).max() == 2**20
        np.testing.assert_allclose(scales[i], exact_scales, rtol=1e-6)
        assert np.array_equal(offsets[i], -form.max_int * found.reshape(*found.shape[:2], -1, form.group).sum(-1))
    assert not outliers[:, :, 0].any()


def test_the_layout_is_a_permutation():
    """Element (n, k) lies in block n // 16, lane n % 16; what a block lacks is zero."""
    stored = np.arange(1, 20 * 7 + 1, dtype=np.uint32).reshape(20, 7)
    packed = twins.pack(stored)
    assert packed.shape == (2, 7, 16) and packed[1, 3, 2] == stored[18, 3]
    assert np.array_equal(np.sort(packed[packed > 0]), stored.ravel()) and not packed[1, :, 4:].any()


def test_planes_that_are_not_there():
    with pytest.raises(ValueError, match="plane 2 of inputs that have 2"):
        gemv((Matrix(16), Matrix(16, plane=2)), 32, FORMS["float32"], planes=2)

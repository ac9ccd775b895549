"""Inputs that are far larger than the others of their group: what is set apart, and what products make of it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest

from support import kernel_twins as twins
from support.cpu_products import CPU_FLAGS, FORMS, GROUP_FORMS, apart, has, read_outliers, weights
from support.kernel_build import build, call, error
from tir_kernels.cpu.gemv import gemv
from tir_kernels.cpu.outliers import OutlierLists
from tir_kernels.cpu.quantize_activation import DIGITS, quantize_activation
from tir_kernels.product import Matrix

COLUMNS, ROWS = {"q3": 320}, 48
OTHER_COLUMNS = 256  # in all of which four parts are whole groups
LISTS = [1, 4]
FACTORS = {
    "none": {},
    "one": {5: 1e3},
    "several in a group": {32: 1e3, 40: -1e2, 41: 1e6},
    "several in a list": {0: 1e2, 31: 1e4, 100: 1e30, 255: -1e5},
    "as many as a group may have": {64 + 3 * i: 1e5 for i in range(4)},
}


@lru_cache(None)
def compiled(form_name: str, lists: int):
    form, columns = FORMS[form_name], COLUMNS.get(form_name, OTHER_COLUMNS)
    functions = {"quantize": quantize_activation(columns, form, lists)}
    for dot in filter(has, CPU_FLAGS):
        functions[dot] = gemv((Matrix(ROWS),), columns, form, dot, lists=lists)
    return build(functions)


def inputs(form_name: str, factors: dict[int, float]) -> np.ndarray:
    """x [1, T, K]; in the first row nothing is large, and the third has zeros."""
    x = np.random.default_rng(1).normal(size=(1, 3, COLUMNS.get(form_name, OTHER_COLUMNS))).astype(np.float32)
    x[0, 2, ::5] = 0
    for number, factor in factors.items():
        x[0, 1:, number] = factor
    return x


def quantize(form_name: str, lists: int, x: np.ndarray) -> list[np.ndarray]:
    form, (_, rows, columns) = FORMS[form_name], x.shape
    groups = form.groups(columns)
    outputs = [
        np.full((1, rows, DIGITS, groups * form.words * len(form.quads)), -1, np.int32),
        np.full((1, rows, groups), np.nan, np.float32),
        np.full((1, rows, DIGITS, groups), -1, np.int32),
        np.full((1, rows, OutlierLists(columns, form, lists).size), -1, np.int32),
    ]
    return call(compiled(form_name, lists)["quantize"], x, *outputs, written=[-4, -3, -2, -1])


@pytest.mark.parametrize("form", GROUP_FORMS)
@pytest.mark.parametrize("lists", LISTS)
@pytest.mark.parametrize("factors", FACTORS)
def test_what_is_set_apart(form, lists, factors):
    x = inputs(form, FACTORS[factors])
    *_, outliers = quantize(form, lists, x)
    found = read_outliers(outliers[0], OutlierLists(x.shape[2], FORMS[form], lists))
    assert found == apart(x[0], FORMS[form]) and not found[0]
    assert all(set(row) >= set(FACTORS[factors]) for row in found[1:])


@pytest.mark.parametrize("form", GROUP_FORMS)
@pytest.mark.parametrize("dot", CPU_FLAGS)
@pytest.mark.parametrize("lists", LISTS)
@pytest.mark.parametrize("factors", [name for name in FACTORS if name != "several in a list"])
def test_products(form, dot, lists, factors):
    """Weights of large inputs are as much smaller, so that nothing hides what was lost of the others."""
    if not has(dot):
        pytest.skip(f"this CPU lacks {' and '.join(CPU_FLAGS[dot])}")
    x = inputs(form, FACTORS[factors])
    stored, dense = weights(FORMS[form], ROWS, x.shape[2])
    out = np.full((1, 3, ROWS), np.nan, np.float32)
    (out,) = call(compiled(form, lists)[dot], *quantize(form, lists, x), *stored, out, written=[-1])
    large = twins.outliers(x[0], FORMS[form].group)
    others = np.where(large, 0, x[0]).astype(np.float64) @ dense.T
    added = np.zeros_like(others)
    for t, row in enumerate(apart(x[0], FORMS[form])):
        added[t] = sum(value * dense[:, number] for number, value in row.items())
    rounding = 2**-23 * max(FACTORS[factors].values(), default=0) * np.abs(dense).max() / np.abs(others).max()
    assert error(out[0], others + added) < 2e-6
    assert np.abs(out[0] - added - others).max() / np.abs(others).max() < 2e-6 + 8 * rounding


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_no_number_reaches_the_outputs(value):
    dots = list(filter(has, CPU_FLAGS))
    if not dots:
        pytest.skip("the products of this test are those of x86-64")
    x = inputs("q4", {7: value})
    stored, _ = weights(FORMS["q4"], ROWS, x.shape[2])
    out = np.zeros((1, 3, ROWS), np.float32)
    (out,) = call(compiled("q4", 1)[dots[0]], *quantize("q4", 1, x), *stored, out, written=[-1])
    assert np.isfinite(out[0, 0]).all() and not np.isfinite(out[0, 1:]).any()

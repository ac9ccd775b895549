"""Matrix products of the CPU kernels in every stored form, and how they are held to their twin."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from support import kernel_twins as twins
from support.kernel_build import call, error
from tir_kernels.cpu.integer_dot import INTEGER_DOTS
from tir_kernels.cpu.outliers import OutlierLists
from tir_kernels.cpu.packed import Packed, PackedFloat, PackedGroup
from tir_kernels.cpu.quantize_activation import DIGITS
from tir_kernels.product import Matrix

FORMS = {
    "float32": PackedFloat("float32"),
    "float16": PackedFloat("float16"),
    "q4": PackedGroup(4, 32, "float16"),
    "q4_float32": PackedGroup(4, 32, "float32"),
    "q8": PackedGroup(8, 32, "float16"),
    "q3": PackedGroup(3, 40, "float16"),
}
GROUP_FORMS = [name for name, form in FORMS.items() if isinstance(form, PackedGroup)]
CPU_FLAGS = {  # any of which means that this machine has the instructions
    "vnni": ["avx512_vnni"],
    "avx512": ["avx512bw"],
    "avxvnni": ["avx_vnni", "avx512_vnni"],
    "avx2": ["avx2"],
    "ssse3": ["ssse3"],
}


@dataclass(frozen=True)
class Call:
    """Matrices that share one kernel, K inputs each, of so many planes."""

    matrices: tuple[Matrix, ...]
    columns: int
    planes: int = 1
    gated: bool = False
    residual: bool = False


CALLS = {
    # Rows that leave a partial block, and inputs that end within a group, a word and a panel of gemm.
    "several": Call((Matrix(70, "squared_relu"), Matrix(64, plane=1), Matrix(25, "silu", plane=2)), 205, 3),
    # Whole groups of 32 and of 40; what follows a product inside a block.
    "single": Call((Matrix(88, "sigmoid"),), 160, gated=True, residual=True),
    # Planes out of order, one of them twice, others that no matrix reads.
    "planes": Call((Matrix(40, plane=3), Matrix(24, "silu"), Matrix(35, plane=3), Matrix(16, plane=1)), 96, 5),
}


@lru_cache(None)
def weights(form: Packed, rows: int, columns: int) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """The arguments of a random matrix, and its values [N, K] in float64. Padded fields hold noise."""
    rng = np.random.default_rng(rows)
    if isinstance(form, PackedFloat):
        stored = rng.normal(0.1, 1, (rows, columns)).astype(form.dtype)
        return (twins.pack(stored),), stored.astype(np.float64)
    fields = rng.integers(0, min(2**form.bits, 255), (rows, form.padded(columns)))  # no scheme stores a byte of 255
    scale = (rng.uniform(0.3, 3, (rows, form.groups(columns))) / form.max_int).astype(form.scale_dtype)
    values = twins.dequantize(fields, scale.astype(np.float64), form.bits, form.group)
    return (twins.pack(twins.join_fields(fields, form.bits)), twins.pack(scale)), values[:, :columns]


def activations(inputs: int, rows: int, columns: int) -> np.ndarray:
    """x [n, T, K] whose scale drifts along K, with a group of zeros."""
    rng = np.random.default_rng(columns)
    x = rng.normal(0.2, 1, (inputs, rows, columns)) * np.exp(np.sin(np.arange(columns) / 40)) / np.sqrt(columns)
    x[:, :, 32:80] = 0
    return x.astype(np.float32)


def unread(call) -> list[int]:
    """The planes that no matrix reads."""
    return sorted(set(range(call.planes)) - {matrix.plane for matrix in call.matrices})


def has(dot: str) -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and not {*CPU_FLAGS[dot]}.isdisjoint(cpuinfo.read_text(encoding="utf-8").split())


def quantized(kernels, form: PackedGroup, c: str, x: np.ndarray) -> list[np.ndarray]:
    """digits, scales, offsets, outliers."""
    shape, groups = x.shape[:2], form.groups(x.shape[2])
    outputs = [
        np.full((*shape, DIGITS, groups * form.words * len(form.quads)), -1, np.int32),
        np.full((*shape, groups), np.nan, np.float32),
        np.full((*shape, DIGITS, groups), -1, np.int32),
        np.full((*shape, OutlierLists(x.shape[2], form).size), -1, np.int32),
    ]
    return call(kernels[f"quantize_{c}"], x, *outputs, written=[-4, -3, -2, -1])


def quantized_bytes(kernel, form: PackedGroup, places: int, x: np.ndarray) -> list[np.ndarray]:
    """What ``quantize_bytes`` makes of x [n, T, K]: digits, scales, outliers."""
    shape, groups = x.shape[:2], form.groups(x.shape[2])
    outputs = [
        np.full((*shape, places, groups * form.words * len(form.quads)), -1, np.int32),
        np.full((*shape, groups), np.nan, np.float32),
        np.full((*shape, OutlierLists(x.shape[2], form).size), -1, np.int32),
    ]
    return call(kernel, x, *outputs, written=[-3, -2, -1])


def read_outliers(outliers: np.ndarray, lists: OutlierLists) -> list[dict[int, float]]:
    """Number and value of the outliers of every row in [T, ...]."""
    found: list[dict[int, float]] = [{} for _ in outliers]
    for row, words in zip(found, outliers):
        for part in range(lists.lists):
            numbers, values = words[lists.numbers(part) :], words[lists.values(part) :].view(np.float32)
            row |= {int(numbers[i]): float(values[i]) for i in range(words[part])}
    return found


def apart(x: np.ndarray, form: PackedGroup) -> list[dict[int, float]]:
    """The same as NumPy has it, of x [T, K]."""
    rows = zip(x, twins.outliers(x, form.group))
    return [{int(k): float(row[k]) for k in np.flatnonzero(chosen)} for row, chosen in rows]


def check(kernels, form: Packed, kernel: str, name: str, rows: int, tolerance: float) -> None:
    c = CALLS[name]
    x, rng = activations(c.planes, rows, c.columns), np.random.default_rng(rows)
    x[unread(c)] = np.nan
    packed, dense = zip(*(weights(form, matrix.rows, c.columns) for matrix in c.matrices))
    gate, residual = rng.normal(0.3, 1, (2, 1, rows, c.matrices[0].rows)).astype(np.float32)
    extra = [gate] * c.gated + [residual] * c.residual
    inputs = quantized(kernels, form, name, x) if kernel in INTEGER_DOTS else [x]
    outs = [np.full((1, rows, matrix.rows), np.nan, np.float32) for matrix in c.matrices]
    stored = [array for matrix in packed for array in matrix]
    outs = call(kernels[f"{kernel}_{name}"], *inputs, *stored, *extra, *outs, written=range(-len(outs), 0))
    for i, (matrix, out) in enumerate(zip(c.matrices, outs)):
        after = (gate[0] if c.gated else 1, residual[0] if c.residual else 0)
        expected = twins.product(x[matrix.plane].astype(np.float64), dense[i], matrix.activation, *after)
        assert error(out[0], expected) < tolerance * (2 if matrix.activation == "squared_relu" else 1)

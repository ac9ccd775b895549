"""What the matrix products of GPUs have in common: their arguments, and weights as ``rows`` stores them, 16 bytes at a time."""

from __future__ import annotations

from tvm.script.ir_builder import tirx as T

from ..builder import arg
from ..product import Matrix
from ..rows import RowFloat, RowGroup, Rows
from .threads import vector_of

CHUNK_WORDS = 4  # 16 bytes, what a thread loads at once
MANTISSA = 23


def product_args(
    matrices: tuple[Matrix, ...], rows, columns: int, form: Rows, x_dtype: str, gated: bool, residual: bool
) -> tuple:
    """Declare the arguments of a fused product: (x, weights of each matrix, gate, residual, outs)."""
    x = arg("x", (len(matrices), rows, columns), x_dtype)
    weights = [form.args(f"w{i}", matrix.rows, columns) for i, matrix in enumerate(matrices)]
    gate = arg("gate", (1, rows, matrices[0].rows)) if gated else None
    skip = arg("residual", (1, rows, matrices[0].rows)) if residual else None
    outs = [arg(f"out{i}", (1, rows, matrix.rows), matrix.dtype) for i, matrix in enumerate(matrices)]
    return x, weights, gate, skip, outs


def chunk_of(form: Rows, columns: int, halves: int) -> int:
    """Elements of a row that a thread loads at once."""
    if isinstance(form, RowFloat):
        return vector_of(form.dtype, columns, halves)
    return CHUNK_WORDS * form.fields


def field(form: RowGroup, word, index: int):
    """Field ``index`` of a word as float32, offset removed.

    Without a conversion, which GPUs are slow at: a float of exponent 23 - p has a unit of 2 ** -p, so that a field at bit p
    of its mantissa counts as it is. Fields too high for that are shifted down first."""
    bit = index * form.bits
    if bit + form.bits > MANTISSA:
        per_window = MANTISSA // form.bits
        start = index // per_window * per_window * form.bits
        word, bit = T.shift_right(word, T.uint32(start)), bit - start
    mask, exponent = T.uint32((2**form.bits - 1) << bit), T.uint32((127 + MANTISSA - bit) << MANTISSA)
    value = T.reinterpret(T.bitwise_or(T.bitwise_and(word, mask), exponent), dtype="float32")
    return value - T.float32(2.0 ** (MANTISSA - bit) + form.max_int)

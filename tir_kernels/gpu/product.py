"""How the matrix products of GPUs read weights as ``rows`` stores them."""

from __future__ import annotations

from itertools import pairwise

from tvm.script.ir_builder import tirx as T

from ..product import Matrix
from ..rows import RowFloat, RowGroup, Rows
from .threads import vector_of

CHUNK_WORDS = 4  # 16 bytes, what a thread loads at once
MANTISSA = 23


def plane_of(matrices: tuple[Matrix, ...], block, starts: list[int]):
    """The plane of the inputs that the matrix of a block reads; ``starts`` as ``block_starts`` gives them. It is
    worked out, not chosen by branches: all blocks load it alike."""
    steps = [after.plane - before.plane for before, after in pairwise(matrices)]
    passed = (T.Select(block >= start, T.int32(step), T.int32(0)) for start, step in zip(starts[1:], steps))
    return sum(passed, T.int32(matrices[0].plane))


def chunk_of(form: Rows, columns: int, float16_lanes: int) -> int:
    """Elements of a row that a thread loads at once."""
    if isinstance(form, RowFloat):
        return vector_of(form.dtype, columns, float16_lanes)
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

"""NVIDIA's tensor cores: what TIR cannot say is called by name, and whoever compiles the source adds these functions.

- ``async_copy(to, from, inside)``: 16 bytes into shared memory, zeros where not ``inside``, with others up to the next
  ``async_commit()``; ``async_wait(n)`` waits for all such groups of the thread but the last n.
- ``load_where(to, from, inside)``: 16 bytes to registers, which stay as they are where not ``inside``.
- ``load_matrices(fragments, row)``: four 8 x 8 matrices of float16 to registers, from the rows that the threads name.
- ``multiply_matrices(sums, left, right)``: adds the product of 16 x 16 by 16 x 8 elements.
- ``multiply_add_pairs(a, b, c)``: a * b + c of two float16 each, rounded once.
- ``masked_or(word, mask, bits)``: (word & mask) | bits in one instruction.
"""

from __future__ import annotations

import numpy as np
from tvm.script.ir_builder import tirx as T

from ..rows import RowFloat, Rows

WARP = 32
GROUP = 32  # inputs that share a scale
PIECE = 8  # float16 in 16 bytes
WORDS = 4  # of 32 bits in a piece
LEFT, RIGHT, STEP = 16, 8, 16  # rows of the left factor, columns of the right one, and inputs of ``multiply_matrices``


def fits_tensor_cores(columns: int, form: Rows, x_dtype: str) -> bool:
    """Whether products on tensor cores are for such matrices: all float16, whole pieces in a row, groups of ``GROUP``."""
    if isinstance(form, RowFloat):
        weights = form.dtype == "float16"
    else:
        weights = form.bits in (4, 8) and form.group == GROUP and form.scale_dtype == "float16"
    return weights and x_dtype == "float16" and columns % PIECE == 0


def call(name: str, *args) -> None:
    T.evaluate(T.call_extern("void", name, *args))


def pair(low: float, high: float):
    """Two float16 in a word."""
    bits = np.array([low, high], np.float16).view(np.uint32)
    return T.uint32(int(bits[0]))


def permute(low, high, order: int):
    """Four of the eight bytes of two words, by a digit of ``order`` each."""
    return T.call_pure_extern("uint32", "__byte_perm", low, high, T.uint32(order))


def multiply_add(a, b, c):
    """a * b + c of two float16 each."""
    return T.call_pure_extern("uint32", "multiply_add_pairs", a, b, c)


def masked_or(word, mask: int, bits):
    """(word & mask) | bits."""
    return T.call_pure_extern("uint32", "masked_or", word, T.uint32(mask), bits)

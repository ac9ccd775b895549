"""Proofs that integers fit in 32 bits, by intervals.

TVM counts in int64 where a shape is dynamic. 64-bit integers are slow on GPUs, and lavapipe of Mesa 22.3 compiles their
comparisons wrongly in divergent branches. Every int64 value therefore has an interval that it cannot leave, computed
from what is certain:

- constants, the static extents of threads and loops, the ranges of dtypes;
- a grid has less than 2^31 blocks in a dimension (the runtime refuses more);
- Vulkan addresses at most 2^32 - 1 bytes of a buffer (``maxStorageBufferRange`` is a uint32). A kernel's argument on
  which the extent of one of its buffers depends is bounded by that.

A value whose interval fits is computed in 32 bits. Sums, differences and products are moreover exact modulo 2^32
whatever their operands are, and an index into elements of two bytes or more is less than 2^31 by the limit above: such
indices need no interval.

``tvm.sym`` does the proofs: its analyzer bounds what an operator gives, ``deduce_bound`` solves an extent for its
argument. What it does not know is done by hand:

- Values wrap. The analyzer takes integers for unbounded, so it is asked about one operator at a time and never about a
  whole expression, and an interval that may leave the range of its dtype becomes that whole range.
- It has no bounds for "or" and "xor", and none for the left shift of a negative number, which it gets as a product.
- It counts in int64, whose ends mean infinity to it, and it may crash where a divisor may be zero and be wrong where a
  shift may be too long. Nothing is claimed of uint64 beyond int64, nor of such divisors and shifts.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from tvm import tirx
from tvm.sym import Analyzer, ConstIntBound, deduce_bound
from tvm.tirx.analysis import undefined_vars

from .words import Op

Interval = tuple[int, int]

INT32 = (-(2**31), 2**31 - 1)
MAX_BLOCKS = 2**31 - 1
MAX_BUFFER_BYTES = 2**32 - 1

X, Y = tirx.Var("x", "int64"), tirx.Var("y", "int64")
EXPRESSIONS = {
    Op.IAdd: X + Y,
    Op.ISub: X - Y,
    Op.IMul: X * Y,
    Op.SDiv: tirx.truncdiv(X, Y),
    Op.UDiv: tirx.truncdiv(X, Y),
    Op.SRem: tirx.truncmod(X, Y),
    Op.UMod: tirx.truncmod(X, Y),
    Op.ShiftLeftLogical: X * Y,  # with a power of two
    Op.ShiftRightArithmetic: X >> Y,
    Op.ShiftRightLogical: X >> Y,
    Op.BitwiseAnd: X & Y,
}
DIVISIONS = {Op.SDiv, Op.UDiv, Op.SRem, Op.UMod}
SHIFTS = {Op.ShiftLeftLogical, Op.ShiftRightArithmetic, Op.ShiftRightLogical}


def fits(interval: Interval) -> bool:
    """Whether int32 holds every value."""
    return INT32[0] <= interval[0] and interval[1] <= INT32[1]


@lru_cache(None)
def dtype_range(dtype: np.dtype) -> Interval:
    if dtype.kind == "b":
        return 0, 1
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


def within(dtype: np.dtype, interval: Interval) -> Interval:
    """The interval, or the whole range of the dtype where a value may have wrapped."""
    low, high = dtype_range(dtype)
    return interval if low <= interval[0] and interval[1] <= high else (low, high)


def union(a: Interval, b: Interval) -> Interval:
    return min(a[0], b[0]), max(a[1], b[1])


@lru_cache(None)
def interval_of(op: Op, a: Interval, b: Interval, dtype: np.dtype) -> Interval:
    """The interval of ``x op y`` in a dtype of integers, for x in ``a`` and y in ``b``."""
    if op in (Op.BitwiseOr, Op.BitwiseXor):
        return within(dtype, _combined(a, b))
    unprovable = (op in DIVISIONS and b[0] <= 0) or (op in SHIFTS and not 0 <= b[0] <= b[1] < 63)
    if unprovable or max(a[1], b[1]) > ConstIntBound.POS_INF:
        return dtype_range(dtype)
    if op == Op.ShiftLeftLogical:
        b = 1 << b[0], 1 << b[1]
    analyzer = Analyzer()
    for variable, (low, high) in ((X, a), (Y, b)):
        analyzer.update(variable, ConstIntBound(max(low, ConstIntBound.NEG_INF), high))
    found = analyzer.const_int_bound(EXPRESSIONS[op])
    if found.min_value == ConstIntBound.NEG_INF or found.max_value == ConstIntBound.POS_INF:
        return dtype_range(dtype)
    return within(dtype, (found.min_value, found.max_value))


def _combined(a: Interval, b: Interval) -> Interval:
    """ "Or" and "xor" give no more bits than their operands have."""
    bits = max((x if x >= 0 else ~x).bit_length() for x in (*a, *b))
    return 0 if a[0] >= 0 and b[0] >= 0 else -(1 << bits), (1 << bits) - 1


def largest_argument(extent: tirx.Expr, element_bytes: int) -> tuple[tirx.Var, int] | None:
    """The variable that the extent of a buffer depends on, and the largest value that it can have. None where there are
    several, and where TVM does not solve the extent for it."""
    variables = undefined_vars(extent)
    if len(variables) != 1 or extent.ty.dtype != "int64":
        return None
    largest_extent = tirx.IntImm("int64", MAX_BUFFER_BYTES // element_bytes)
    largest = deduce_bound(variables[0], extent <= largest_extent, {}, {}).max_value
    return (variables[0], int(largest)) if isinstance(largest, tirx.IntImm) else None

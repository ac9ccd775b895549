"""Proofs that integers fit in 32 bits, by intervals.

TVM counts in int64 where a shape is dynamic. 64-bit integers are slow on GPUs, and lavapipe of Mesa 22.3 compiles their
comparisons wrongly in divergent branches. Every int64 value therefore has an interval that it cannot leave, computed
from what is certain:

- constants, the static extents of threads and loops, the ranges of dtypes;
- a grid has less than 2^31 blocks in a dimension (the runtime refuses more);
- Vulkan addresses at most 2^32 - 1 bytes of a buffer (``maxStorageBufferRange`` is a uint32). A kernel's argument that
  is, but for a factor, the extent of one of its buffers is bounded by that.

A value whose interval fits is computed in 32 bits. Sums, differences and products are moreover exact modulo 2^32 whatever
their operands are, and an index into elements of two bytes or more is less than 2^31 by the limit above: such indices need
no interval. An interval that may leave the range of its dtype is that whole range: the value may have wrapped.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from tvm import tirx

from .words import Op

Interval = tuple[int, int]

INT32 = (-(2**31), 2**31 - 1)
MAX_BLOCKS = 2**31 - 1
MAX_BUFFER_BYTES = 2**32 - 1


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
    low, high = dtype_range(dtype)
    return interval if low <= interval[0] and interval[1] <= high else (low, high)


def union(a: Interval, b: Interval) -> Interval:
    return min(a[0], b[0]), max(a[1], b[1])


def corners(function: Callable[[int, int], int], a: Interval, b: Interval) -> Interval:
    """Of a function that is monotonic in each operand."""
    values = [function(x, y) for x in a for y in b]
    return min(values), max(values)


def result(op: Op, a: Interval, b: Interval, dtype: np.dtype) -> Interval:
    """The interval of ``a op b`` in a dtype of integers."""
    known = _INTERVALS[op](a, b) if op in _INTERVALS else None
    return dtype_range(dtype) if known is None else within(dtype, known)


def _quotient(a: Interval, b: Interval) -> Interval | None:
    return corners(lambda x, y: abs(x) // y * (1 if x >= 0 else -1), a, b) if b[0] > 0 else None


def _remainder(a: Interval, b: Interval) -> Interval | None:
    """With the sign of the dividend."""
    return (max(min(a[0], 0), 1 - b[1]), min(max(a[1], 0), b[1] - 1)) if b[0] > 0 else None


def _shifted(shift: Callable[[int, int], int]) -> Callable[[Interval, Interval], Interval | None]:
    return lambda a, b: corners(shift, a, b) if 0 <= b[0] and b[1] < 64 else None


def _masked(a: Interval, b: Interval) -> Interval | None:
    highest = [x[1] for x in (a, b) if x[0] >= 0]
    return (0, min(highest)) if highest else None


def _combined(a: Interval, b: Interval) -> Interval:
    """Of bitwise operations: no more bits than the operands have."""
    bits = max((x if x >= 0 else ~x).bit_length() for x in (*a, *b))
    return 0 if a[0] >= 0 and b[0] >= 0 else -(1 << bits), (1 << bits) - 1


_INTERVALS: dict[Op, Callable[[Interval, Interval], Interval | None]] = {
    Op.IAdd: lambda a, b: corners(operator.add, a, b),
    Op.ISub: lambda a, b: corners(operator.sub, a, b),
    Op.IMul: lambda a, b: corners(operator.mul, a, b),
    Op.SDiv: _quotient,
    Op.UDiv: _quotient,
    Op.SRem: _remainder,
    Op.UMod: _remainder,
    Op.ShiftLeftLogical: _shifted(operator.lshift),
    Op.ShiftRightArithmetic: _shifted(operator.rshift),
    Op.ShiftRightLogical: lambda a, b: _shifted(operator.rshift)(a, b) if a[0] >= 0 else None,
    Op.BitwiseAnd: _masked,
    Op.BitwiseOr: _combined,
    Op.BitwiseXor: _combined,
}


def largest_extent(shape: tirx.Expr, element_bytes: int) -> tuple[tirx.Var, int] | None:
    """The variable in the extent of a buffer and the largest value it can have; None for what is not a variable times
    constants."""
    limit = MAX_BUFFER_BYTES // element_bytes
    while isinstance(shape, tirx.Mul) and isinstance(shape.b, tirx.IntImm) and int(shape.b) > 0:
        limit //= int(shape.b)
        shape = shape.a
    return (shape, limit) if isinstance(shape, tirx.Var) else None

"""Lists of the inputs of a product that are not zero, in order and without gaps, for ``sparse_gemv``.

Where most inputs are not zero all are listed: reading the lines of memory one after the other then takes less time than
leaving some out. The results are the same, bit for bit.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import cast, span, splat, vector_type
from .simd import LANES, intrinsic, registers, sum_lanes

AHEAD = 96  # entries after the last one of a list, all 0: products look ahead
MOST = 7 / 16  # of the inputs; from there on all are listed
NONE = -(2**31)  # what no quantized input and no magnitude is equal to


def compress(values, chosen, dtype: str, width: int):
    """The lanes of integers for which ``chosen`` holds, without gaps, then zeros."""
    zeros = splat(tirx.const(0, dtype), width)
    return T.bind(intrinsic("llvm.experimental.vector.compress", f"{dtype}x{width}", values, chosen, zeros))


def magnitude(values, width: int):
    """The bits of float32 without their sign, which are in the order of the numbers."""
    bits = T.reinterpret(values, dtype=vector_type("int32", width))
    return T.bitwise_and(bits, splat(T.int32(2**31 - 1), width))


def count(chosen, width: int):
    return sum_lanes(cast(chosen, "int32", width))


def not_listed(x, row, columns: int, skip: bool):
    """The input that a row's list leaves out: 0, or ``NONE``."""
    found = registers((LANES,), "int32")
    lanes = span(0, LANES)
    T.buffer_store(found, splat(T.int32(0), LANES), [lanes])
    with T.serial(0, columns // LANES) as i:
        nonzero = magnitude(x[0, row, T.ramp(i * LANES, 1, LANES)], LANES) != splat(T.int32(0), LANES)
        T.buffer_store(found, found[lanes] + cast(nonzero, "int32", LANES), [lanes])
    most = int(MOST * columns) if skip else 0
    dense = sum_lanes(found[lanes]) >= T.int32(most)
    return T.bind(T.Select(dense, T.int32(NONE), T.int32(0)))


def end_list(inputs, row, end) -> None:
    """Write the entries after the last one."""
    for i in range(0, AHEAD, LANES):
        T.buffer_store(inputs, splat(T.int32(0), LANES), [row, T.ramp(end + i, 1, LANES)])

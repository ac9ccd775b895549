"""Activations as 21-bit integers with a scale per group, in three bytes, for the integer products of ``gemv``.

An integer q is d0 + 128 d1 + 16384 d2 with -64 <= d <= 64: an eight-bit dot product takes the digits of one place at a time,
and the places are put together once a group. The relative error of a product is 7e-7, near that of float32 itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, reduce

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, cast, constant, prim_func, root_block, splat
from .groups import each_group
from .outliers import OutlierLists, set_apart
from .packed import PackedGroup
from .simd import LANES, sum_lanes, vector_width

DIGITS = 3
BASE_BITS = 7
LARGEST = 2**20


def digits_of(q, width: int) -> Iterator:
    """The digits of int32 lanes, lowest first."""

    def integer(value: int):
        return splat(T.int32(value), width)

    for _ in range(DIGITS - 1):
        digit = T.bind(T.bitwise_and(q + integer(64), integer(127)) - integer(64))
        yield digit
        q = T.bind(T.shift_right(q - digit, integer(BASE_BITS)))
    yield q


def join_digits(sums: list):
    """The float32 number that int32x16 sums of the products at each place make together."""
    low = cast(T.shift_left(sums[1], splat(T.int32(BASE_BITS), LANES)) + sums[0], "float32", LANES)
    return cast(sums[2], "float32", LANES) * constant(2.0 ** (2 * BASE_BITS), LANES) + low


@lru_cache(None)
def quantize_activation(columns: int, form: PackedGroup, parts: int = 1) -> tirx.PrimFunc:
    """(x -> digits, scales, offsets, outliers).

    x float32 [m, T, K], of which the first n are read; scales float32 [n, T, G], max|x| / 2 ** 20 of each group; offsets
    int32 [n, T, 3, G], -max_int times the sum of a place's digits, which folds the weights' offset into an accumulator's
    start; digits int32 [n, T, 3, words * quads]: four signed bytes each, the elements of ``form.quads`` of each word's
    span of inputs; outliers int32 [n, T, ...], ``OutlierLists`` with one for each part, of inputs that are zero among the
    digits.
    ``parts`` run in parallel; it divides the number of whole groups, or is 1.
    """
    groups, quads = form.groups(columns), form.words * len(form.quads)
    width = vector_width(form.group)
    order, lists = form.byte_order(), OutlierLists(columns, form, parts)

    @prim_func(own=("reads", "writes"))
    def kernel():
        given, inputs, rows = T.int64(), T.int64(), T.int64()
        x = arg("x", (given, rows, columns))
        digits = arg("digits", (inputs, rows, DIGITS, groups * quads), "int32")
        scales = arg("scales", (inputs, rows, groups))
        offsets = arg("offsets", (inputs, rows, DIGITS, groups), "int32")
        outliers = lists.argument(inputs, rows)

        def quantize_group(n, t, part, g, values):
            values, top = set_apart(values, width, g * form.group, outliers, (n, t), lists, part)
            inverse = T.bind(splat(T.float32(LARGEST) / T.max(top, T.float32(1e-30)), width))
            numbers = [T.bind(cast(T.nearbyint(value * inverse), "int32", width)) for value in values]
            for place, each in enumerate(zip(*(digits_of(q, width) for q in numbers))):
                octets = [cast(digit, "int8", width) for digit in each] + [splat(T.int8(0), width)]
                packed = T.reinterpret(T.Shuffle(octets, order), dtype=f"int32x{quads}")
                T.buffer_store(digits, packed, [n, t, place, T.ramp(g * quads, 1, quads)])
                total = sum_lanes(reduce(lambda a, b: a + b, each))
                T.buffer_store(offsets, total * -form.max_int, [n, t, place, g])
            T.buffer_store(scales, top * T.float32(1 / LARGEST), [n, t, g])

        with root_block(), T.parallel(0, parts) as part, T.serial(0, inputs) as n, T.serial(0, rows) as t:
            T.buffer_store(outliers, T.int32(0), [n, t, part])
            each_group(
                x, (n, t), columns, form.group, part, parts, lambda g, values: quantize_group(n, t, part, g, values)
            )

    return kernel

"""Activations as 21-bit integers with a scale per group, in three bytes, for the integer products of ``gemv``.

An integer q is d0 + 128 d1 + 16384 d2 with -64 <= d <= 64: an eight-bit dot product takes the digits of one place at a time,
and the places are put together once a group. The relative error of a product is 7e-7, near that of float32 itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, cast, constant, prim_func, root_block, splat
from .packed import PackedGroup
from .simd import LANES, largest_magnitude, registers, sum_lanes

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
    """(x -> digits, scales, offsets).

    x float32 [n, T, K]; scales float32 [n, T, G], max|x| / 2 ** 20 of each group; offsets int32 [n, T, 3, G], -max_int
    times the sum of a place's digits, which folds the weights' offset into an accumulator's start; digits int32
    [n, T, 3, words * quads]: four signed bytes each, the elements of ``form.quads`` of each word's span of inputs.
    ``parts`` run in parallel; it divides the number of whole groups, or is 1.
    """
    fields, group = form.fields, form.group
    groups, quads = form.groups(columns), len(form.quads)

    @prim_func(own=("reads", "writes"))
    def kernel():
        inputs, rows = T.int64(), T.int64()
        x = arg("x", (inputs, rows, columns))
        digits = arg("digits", (inputs, rows, DIGITS, groups * form.words * quads), "int32")
        scales = arg("scales", (inputs, rows, groups))
        offsets = arg("offsets", (inputs, rows, DIGITS, groups), "int32")

        def quantize_group(n, t, g, length: int):
            """Group g of one row, of which ``length`` inputs exist."""
            start = g * group
            local = registers((DIGITS, group), "int32")
            total = registers((DIGITS,), "int32")
            top = registers((1,))
            T.buffer_store(top, T.float32(0.0), [0])
            with T.serial(0, length) as i:
                T.buffer_store(top, T.max(top[0], T.fabs(x[n, t, start + i])), [0])
            inverse = T.bind(T.float32(LARGEST) / T.max(top[0], T.float32(1e-30)))
            for place in range(DIGITS):
                T.buffer_store(total, T.int32(0), [place])
                for i in range(length, group):
                    T.buffer_store(local, T.int32(0), [place, i])
            with T.serial(0, length) as i:
                q = T.bind(T.cast(T.nearbyint(x[n, t, start + i] * inverse), "int32"))
                for place, digit in enumerate(digits_of(q, 1)):
                    T.buffer_store(local, digit, [place, i])
                    T.buffer_store(total, total[place] + digit, [place])
            for place in range(DIGITS):
                for word in range(form.words):
                    for j, quad in enumerate(form.quads):
                        packed = T.int32(0)
                        for byte, field in enumerate(quad):
                            value = T.bitwise_and(local[place, word * fields + field], T.int32(255))
                            packed = T.bitwise_or(packed, T.shift_left(value, T.int32(8 * byte)))
                        T.buffer_store(digits, packed, [n, t, place, (g * form.words + word) * quads + j])
                T.buffer_store(offsets, total[place] * -form.max_int, [n, t, place, g])
            T.buffer_store(scales, top[0] * T.float32(1 / LARGEST), [n, t, g])

        def quantize_group_on_vectors(n, t, g):
            values = [T.bind(x[n, t, T.ramp(g * group + i, 1, LANES)]) for i in range(0, group, LANES)]
            top = largest_magnitude(values, LANES)
            inverse = T.bind(splat(T.float32(LARGEST) / T.max(top, T.float32(1e-30)), LANES))
            total = [None] * DIGITS
            order = [word + field for word in range(0, LANES, fields) for quad in form.quads for field in quad]
            for i, value in enumerate(values):
                q = T.bind(cast(T.nearbyint(value * inverse), "int32", LANES))
                for place, digit in enumerate(digits_of(q, LANES)):
                    total[place] = digit if total[place] is None else total[place] + digit
                    ordered = T.Shuffle([cast(digit, "int8", LANES)], order)
                    at = T.ramp((g * group + i * LANES) // 4, 1, LANES // 4)
                    T.buffer_store(digits, T.reinterpret(ordered, dtype="int32x4"), [n, t, place, at])
            T.buffer_store(scales, top * T.float32(1 / LARGEST), [n, t, g])
            for place in range(DIGITS):
                summed = sum_lanes(total[place])
                T.buffer_store(offsets, summed * -form.max_int, [n, t, place, g])

        with root_block():
            on_vectors = group % LANES == 0 and LANES % fields == 0
            whole = columns // group // parts
            with T.parallel(0, parts) as part, T.serial(0, inputs) as n, T.serial(0, rows) as t:
                with T.serial(0, whole) as i:
                    g = part * whole + i
                    quantize_group_on_vectors(n, t, g) if on_vectors else quantize_group(n, t, g, group)
                if columns % group:
                    quantize_group(n, t, groups - 1, columns % group)

    return kernel

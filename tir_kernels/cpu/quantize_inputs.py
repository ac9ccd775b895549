"""Lists the inputs of a product that are not zero, as the integers of ``quantize_activation``: see ``lists``."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, cast, constant, prim_func, root_block, span, splat
from .lists import AHEAD, compress, count, end_list, magnitude, not_listed
from .packed import PackedGroup
from .quantize_activation import DIGITS, LARGEST, digits_of
from .simd import LANES, intrinsic, registers, sum_lanes


@lru_cache(None)
def quantize_inputs(columns: int, form: PackedGroup, skip: bool = True) -> tirx.PrimFunc:
    """(x -> digits, inputs, bounds, scales, offsets).

    As ``quantize_activation`` with one plane of inputs, for those that it does not round to zero: each group's in fours,
    of which the last is filled up with zero digits of input 0. digits int32 [T, 3, Kp / 4]; inputs int32 [T, Kp + 96];
    bounds int32 [T, G + 1]: the fours of group g are from bounds[g] to bounds[g + 1]; scales float32 [T, G]; offsets int32
    [T, 3, G]. Without ``skip`` all are listed."""
    width, groups = form.group, form.groups(columns)
    fours = width // 4

    @prim_func
    def kernel():
        rows = T.int64()
        x = arg("x", (1, rows, columns))
        digits = arg("digits", (rows, DIGITS, groups * fours), "int32")
        inputs = arg("inputs", (rows, groups * width + AHEAD), "int32")
        bounds = arg("bounds", (rows, groups + 1), "int32")
        scales = arg("scales", (rows, groups))
        offsets = arg("offsets", (rows, DIGITS, groups), "int32")

        def last_group(t):
            padded = registers((width,))
            T.buffer_store(padded, constant(0.0, width), [span(0, width)])
            for i in range(columns % width):
                T.buffer_store(padded, x[0, t, columns // width * width + i], [i])
            return padded[span(0, width)]

        def quantize_group(t, g, values, skipped):
            values = T.bind(values)
            largest = intrinsic("llvm.vector.reduce.smax", "int32", magnitude(values, width))
            top = T.bind(T.reinterpret(largest, dtype="float32"))
            inverse = T.bind(splat(T.float32(LARGEST) / T.max(top, T.float32(1e-30)), width))
            q = T.bind(cast(T.nearbyint(values * inverse), "int32", width))
            first = T.bind(bounds[t, g])
            # A byte for the digit of each place, one for the position in the group plus 1, so that 0 is none.
            packed = T.ramp(T.int32(1 << 24), T.int32(1 << 24), width)
            for place, digit in enumerate(digits_of(q, width)):
                octet = T.bitwise_and(digit, splat(T.int32(255), width))
                packed = T.bitwise_or(packed, T.shift_left(octet, splat(T.int32(8 * place), width)))
                total = sum_lanes(digit)
                T.buffer_store(offsets, total * -form.max_int, [t, place, g])
            listed = registers((width + LANES,), "int32")
            T.buffer_store(listed, splat(T.int32(0), width), [span(0, width)])
            end = T.int32(0)
            for i in range(0, width, LANES):
                part = list(range(i, i + LANES))
                of_part = T.Shuffle([q], part) != splat(skipped, LANES)
                T.buffer_store(listed, compress(T.Shuffle([packed], part), of_part, "int32", LANES), [span(end, LANES)])
                end = T.bind(end + count(of_part, LANES))
            packed = T.bind(listed[span(0, width)])
            for place in range(DIGITS):
                octets = cast(T.shift_right(packed, splat(T.int32(8 * place), width)), "int8", width)
                at = [t, place, T.ramp(first, 1, fours)]
                T.buffer_store(digits, T.reinterpret(octets, dtype=f"int32x{fours}"), at)
            numbers = T.bind(T.shift_right(packed, splat(T.int32(24), width)))
            none = splat(T.int32(0), width)
            start = splat(T.cast(g, "int32") * width - 1, width)
            T.buffer_store(inputs, T.Select(numbers > none, numbers + start, none), [t, T.ramp(first * 4, 1, width)])
            T.buffer_store(bounds, first + (end + 3) // 4, [t, g + 1])
            T.buffer_store(scales, top * T.float32(1 / LARGEST), [t, g])

        with root_block(), T.serial(0, rows) as t:
            skipped = not_listed(x, t, columns, skip)
            T.buffer_store(bounds, T.int32(0), [t, 0])
            with T.serial(0, columns // width) as g:
                quantize_group(t, g, x[0, t, T.ramp(g * width, 1, width)], skipped)
            if columns % width:
                quantize_group(t, T.int64(groups - 1), last_group(t), skipped)
            end_list(inputs, t, bounds[t, groups] * 4)

    return kernel

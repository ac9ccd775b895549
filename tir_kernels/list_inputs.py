"""Which inputs of a product are not zero: lists of them for ``sparse_gemv``, in order and without gaps.

Where most inputs are not zero all are listed: reading the lines of memory one after the other then takes less time than
leaving some out. The results are the same, bit for bit.
"""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .builder import arg, prim_func, registers
from .packed import PackedGroup
from .quantize_activation import LARGEST, PLANES, planes
from .simd import LANES, constant, intrinsic, span, splat, vector_type, widen

AHEAD = 96  # entries behind the last one of a list, all 0: products look ahead
MOST = 7 / 16  # of the inputs; from there on all are listed
NONE = -(2**31)  # what no quantised input and no magnitude is equal to


def compress(values, chosen, dtype: str, width: int):
    """The lanes of integers for which ``chosen`` holds, without gaps, then zeros."""
    zeros = splat(tirx.const(0, dtype), width)
    return T.bind(intrinsic("llvm.experimental.vector.compress", f"{dtype}x{width}", values, chosen, zeros))


def magnitude(values, width: int):
    """The bits of float32 without their sign, which are in the order of the numbers."""
    bits = T.reinterpret(values, dtype=vector_type("int32", width))
    return T.bitwise_and(bits, splat(T.int32(2**31 - 1), width))


def count(chosen, width: int):
    return intrinsic("llvm.vector.reduce.add", "int32", widen(chosen, "int32", width))


def not_listed(x, row, columns: int, skip: bool):
    """What is left out of a list of a row's inputs: 0, or nothing."""
    found = registers((LANES,), "int32")
    lanes = span(0, LANES)
    T.buffer_store(found, splat(T.int32(0), LANES), [lanes])
    with T.serial(0, columns // LANES) as i:
        nonzero = magnitude(x[0, row, T.ramp(i * LANES, 1, LANES)], LANES) != splat(T.int32(0), LANES)
        T.buffer_store(found, found[lanes] + widen(nonzero, "int32", LANES), [lanes])
    most = int(MOST * columns) if skip else 0
    dense = intrinsic("llvm.vector.reduce.add", "int32", found[lanes]) >= T.int32(most)
    return T.bind(T.Select(dense, T.int32(NONE), T.int32(0)))


def end_list(inputs, row, end) -> None:
    """Write the entries behind the last one."""
    for i in range(0, AHEAD, LANES):
        T.buffer_store(inputs, splat(T.int32(0), LANES), [row, T.ramp(end + i, 1, LANES)])


@lru_cache(None)
def list_inputs(columns: int, group: int, skip: bool = True) -> tirx.PrimFunc:
    """(x -> values, inputs, bounds); CPU form.

    x float32 [1, T, K]; values float32 [T, L] and inputs int32 [T, L], L = K + 96, which inputs are not zero and what they
    are; bounds int32 [T, G + 1]: those of group g are from bounds[g] to bounds[g + 1]. Without ``skip`` all are listed."""
    groups = -(-columns // group)

    @prim_func
    def kernel():
        rows = T.int64()
        x = arg("x", (1, rows, columns))
        values = arg("values", (rows, columns + AHEAD))
        inputs = arg("inputs", (rows, columns + AHEAD), "int32")
        bounds = arg("bounds", (rows, groups + 1), "int32")

        def list_span(t, end, first, width: int, skipped):
            value = T.bind(x[0, t, span(first, width)])
            chosen = magnitude(value, width) != splat(skipped, width)
            at = [t, span(end[0], width)]
            if width == 1:
                T.buffer_store(values, value, at)
                T.buffer_store(inputs, T.cast(first, "int32"), at)
                T.buffer_store(end, end[0] + T.cast(chosen, "int32"), [0])
            else:
                bits = compress(T.reinterpret(value, dtype=f"int32x{width}"), chosen, "int32", width)
                T.buffer_store(values, T.reinterpret(bits, dtype=f"float32x{width}"), at)
                numbers = T.ramp(T.cast(first, "int32"), 1, width)
                T.buffer_store(inputs, compress(numbers, chosen, "int32", width), at)
                T.buffer_store(end, end[0] + count(chosen, width), [0])

        def list_group(t, g, end, length: int, skipped):
            for first in range(0, length // LANES * LANES, LANES):
                list_span(t, end, g * group + first, LANES, skipped)
            for first in range(length // LANES * LANES, length):
                list_span(t, end, g * group + first, 1, skipped)
            T.buffer_store(bounds, end[0], [t, g + 1])

        with T.sblock("root"):
            T.reads()
            T.writes()
            with T.serial(0, rows) as t:
                skipped = not_listed(x, t, columns, skip)
                end = registers((1,), "int32")
                T.buffer_store(end, T.int32(0), [0])
                T.buffer_store(bounds, T.int32(0), [t, 0])
                with T.serial(0, columns // group) as g:
                    list_group(t, g, end, group, skipped)
                if columns % group:
                    list_group(t, T.int64(groups - 1), end, columns % group, skipped)
                end_list(inputs, t, end[0])

    return kernel


@lru_cache(None)
def quantize_inputs(columns: int, form: PackedGroup, skip: bool = True) -> tirx.PrimFunc:
    """(x -> digits, inputs, bounds, scales, offsets); CPU form.

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
        digits = arg("digits", (rows, PLANES, groups * fours), "int32")
        inputs = arg("inputs", (rows, groups * width + AHEAD), "int32")
        bounds = arg("bounds", (rows, groups + 1), "int32")
        scales = arg("scales", (rows, groups))
        offsets = arg("offsets", (rows, PLANES, groups), "int32")

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
            q = T.bind(widen(T.nearbyint(values * inverse), "int32", width))
            first = T.bind(bounds[t, g])
            # A byte for the digit of each plane, one for the place in the group plus 1, so that 0 is none.
            packed = T.ramp(T.int32(1 << 24), T.int32(1 << 24), width)
            for plane, digit in enumerate(planes(q, width)):
                octet = T.bitwise_and(digit, splat(T.int32(255), width))
                packed = T.bitwise_or(packed, T.shift_left(octet, splat(T.int32(8 * plane), width)))
                total = intrinsic("llvm.vector.reduce.add", "int32", digit)
                T.buffer_store(offsets, total * -form.max_int, [t, plane, g])
            listed = registers((width + LANES,), "int32")
            T.buffer_store(listed, splat(T.int32(0), width), [span(0, width)])
            end = T.int32(0)
            for i in range(0, width, LANES):
                part = list(range(i, i + LANES))
                of_part = T.Shuffle([q], part) != splat(skipped, LANES)
                T.buffer_store(listed, compress(T.Shuffle([packed], part), of_part, "int32", LANES), [span(end, LANES)])
                end = T.bind(end + count(of_part, LANES))
            packed = T.bind(listed[span(0, width)])
            for plane in range(PLANES):
                octets = widen(T.shift_right(packed, splat(T.int32(8 * plane), width)), "int8", width)
                at = [t, plane, T.ramp(first, 1, fours)]
                T.buffer_store(digits, T.reinterpret(octets, dtype=f"int32x{fours}"), at)
            numbers = T.bind(T.shift_right(packed, splat(T.int32(24), width)))
            none = splat(T.int32(0), width)
            start = splat(T.cast(g, "int32") * width - 1, width)
            T.buffer_store(inputs, T.Select(numbers > none, numbers + start, none), [t, T.ramp(first * 4, 1, width)])
            T.buffer_store(bounds, first + (end + 3) // 4, [t, g + 1])
            T.buffer_store(scales, top * T.float32(1 / LARGEST), [t, g])

        with T.sblock("root"):
            T.reads()
            T.writes()
            with T.serial(0, rows) as t:
                skipped = not_listed(x, t, columns, skip)
                T.buffer_store(bounds, T.int32(0), [t, 0])
                with T.serial(0, columns // width) as g:
                    quantize_group(t, g, x[0, t, T.ramp(g * width, 1, width)], skipped)
                if columns % width:
                    quantize_group(t, T.int64(groups - 1), last_group(t), skipped)
                end_list(inputs, t, bounds[t, groups] * 4)

    return kernel

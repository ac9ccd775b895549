"""Lists the inputs of a product that are not zero, as the integers of ``quantize_activation``: see ``lists``."""

from __future__ import annotations

from functools import lru_cache, reduce

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, cast, prim_func, root_block, span, splat
from .groups import each_group
from .lists import AHEAD, compress, count, end_list, not_listed
from .outliers import OutlierLists, set_apart
from .packed import PackedGroup
from .quantize_activation import DIGITS, LARGEST, digits_of
from .simd import registers, sum_lanes, vector_width


@lru_cache(None)
def quantize_inputs(columns: int, form: PackedGroup, skip: bool = True) -> tirx.PrimFunc:
    """(x -> digits, inputs, bounds, scales, offsets, outliers).

    As ``quantize_activation`` with one plane of inputs, for those that it does not round to zero: each group's in fours,
    of which the last is filled up with zero digits of input 0. digits int32 [T, 3, Kp / 4]; inputs int32 [T, Kp + 96];
    bounds int32 [T, G + 1]: the fours of group g are from bounds[g] to bounds[g + 1]; scales float32 [T, G]; offsets int32
    [T, 3, G]; outliers int32 [T, ...], ``OutlierLists``. Without ``skip`` all are listed."""
    group, groups = form.group, form.groups(columns)
    width, fours = vector_width(group), group // 4
    lanes, lists = span(0, width), OutlierLists(columns, form)

    @prim_func
    def kernel():
        rows = T.int64()
        x = arg("x", (1, rows, columns))
        digits = arg("digits", (rows, DIGITS, groups * fours), "int32")
        inputs = arg("inputs", (rows, groups * group + AHEAD), "int32")
        bounds = arg("bounds", (rows, groups + 1), "int32")
        scales = arg("scales", (rows, groups))
        offsets = arg("offsets", (rows, DIGITS, groups), "int32")
        outliers = lists.argument(rows)

        def quantize_group(t, g, values, skipped):
            values, top = set_apart(values, width, g * group, outliers, (t,), lists, 0)
            inverse = T.bind(splat(T.float32(LARGEST) / T.max(top, T.float32(1e-30)), width))
            numbers = registers((len(values), width), "int32")
            for i, value in enumerate(values):
                T.buffer_store(numbers, cast(T.nearbyint(value * inverse), "int32", width), [i, lanes])
            first = T.bind(bounds[t, g])
            # A byte for the digit of each place, one for the position in the group plus 1, so that 0 is none.
            packed = [T.ramp(T.int32((1 + i * width) << 24), T.int32(1 << 24), width) for i in range(len(values))]
            for place, each in enumerate(zip(*(digits_of(numbers[i, lanes], width) for i in range(len(values))))):
                for i, digit in enumerate(each):
                    octet = T.bitwise_and(digit, splat(T.int32(255), width))
                    packed[i] = T.bitwise_or(packed[i], T.shift_left(octet, splat(T.int32(8 * place), width)))
                total = sum_lanes(reduce(lambda a, b: a + b, each))
                T.buffer_store(offsets, total * -form.max_int, [t, place, g])
            listed = registers((group + width,), "int32")
            T.buffer_store(listed, splat(T.int32(0), group), [span(0, group)])
            end = T.int32(0)
            for i, entries in enumerate(packed):
                chosen = numbers[i, lanes] != splat(skipped, width)
                T.buffer_store(listed, compress(entries, chosen, "int32", width), [span(end, width)])
                end = T.bind(end + count(chosen, width))
            entries = T.bind(listed[span(0, group)])
            for place in range(DIGITS):
                octets = cast(T.shift_right(entries, splat(T.int32(8 * place), group)), "int8", group)
                at = [t, place, T.ramp(first, 1, fours)]
                T.buffer_store(digits, T.reinterpret(octets, dtype=f"int32x{fours}"), at)
            positions = T.bind(T.shift_right(entries, splat(T.int32(24), group)))
            none = splat(T.int32(0), group)
            start = splat(T.cast(g, "int32") * group - 1, group)
            T.buffer_store(
                inputs, T.Select(positions > none, positions + start, none), [t, T.ramp(first * 4, 1, group)]
            )
            T.buffer_store(bounds, first + (end + 3) // 4, [t, g + 1])
            T.buffer_store(scales, top * T.float32(1 / LARGEST), [t, g])

        with root_block(), T.serial(0, rows) as t:
            skipped = not_listed(x, t, columns, skip)
            T.buffer_store(bounds, T.int32(0), [t, 0])
            T.buffer_store(outliers, T.int32(0), [t, 0])
            each_group(x, (0, t), columns, group, 0, 1, lambda g, values: quantize_group(t, g, values, skipped))
            end_list(inputs, t, bounds[t, groups] * 4)

    return kernel

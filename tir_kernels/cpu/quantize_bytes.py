"""Activations as integers of one to three bytes with a scale per token and group of inputs, for ``gemm_bytes``."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, cast, prim_func, root_block, splat
from .groups import each_group
from .outliers import OutlierLists, set_apart
from .packed import PackedGroup
from .simd import vector_width


def largest(form: PackedGroup, places: int) -> int:
    """The largest magnitude of an integer of so many bytes whose products with a group of weights an int32 can add up, less
    what float32 may round it up by."""
    bound = min(2 ** (8 * places - 1), 2**31 // (form.group * (form.max_int + 1)))
    return bound - 1 - bound // 2**20


@lru_cache(None)
def quantize_bytes(columns: int, form: PackedGroup, places: int) -> tirx.PrimFunc:
    """(x -> digits, scales, outliers), parallel over tokens.

    x float32 [m, T, K], of which the first n are read; scales float32 [n, T, G], max|x| / ``largest`` of each group;
    digits int32 [n, T, places, words * quads]: the bytes of the integers, plus 128 at the last place so that none is
    negative, lowest place first; four bytes each, the elements of ``form.quads`` of each word's span of inputs; outliers
    int32 [n, T, ...], ``OutlierLists`` of inputs that are zero among the digits.
    """
    groups, quads = form.groups(columns), form.words * len(form.quads)
    width, most = vector_width(form.group), largest(form, places)
    order, lists = form.byte_order(), OutlierLists(columns, form)

    @prim_func
    def kernel():
        given, inputs, rows = T.int64(), T.int64(), T.int64()
        x = arg("x", (given, rows, columns))
        digits = arg("digits", (inputs, rows, places, groups * quads), "int32")
        scales = arg("scales", (inputs, rows, groups))
        outliers = lists.argument(inputs, rows)

        def quantize_group(n, t, g, values):
            values, top = set_apart(values, width, g * form.group, outliers, (n, t), lists, 0)
            inverse = T.bind(splat(T.float32(most) / T.max(top, T.float32(1e-30)), width))
            offset = splat(T.int32(128 << 8 * (places - 1)), width)
            numbers = [T.bind(cast(T.nearbyint(value * inverse), "int32", width) + offset) for value in values]
            for place in range(places):
                shift = splat(T.int32(8 * place), width)
                octets = [cast(T.shift_right(number, shift), "uint8", width) for number in numbers]
                packed = T.Shuffle([*octets, splat(T.uint8(0), width)], order)
                at = [n, t, place, T.ramp(g * quads, 1, quads)]
                T.buffer_store(digits, T.reinterpret(packed, dtype=f"int32x{quads}"), at)
            T.buffer_store(scales, top * T.float32(1 / most), [n, t, g])

        with root_block(), T.parallel(0, rows) as t, T.serial(0, inputs) as n:
            T.buffer_store(outliers, T.int32(0), [n, t, 0])
            each_group(x, (n, t), columns, form.group, 0, 1, lambda g, values: quantize_group(n, t, g, values))

    return kernel

"""Activations as 8-bit integers with a scale per token and group of inputs, for the products of ``gemm_int8``."""

from __future__ import annotations

from functools import lru_cache, reduce

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, cast, constant, prim_func, root_block, span, splat
from .packed import PackedGroup
from .simd import largest_magnitude, registers, sum_lanes, vector_width

LARGEST = 127


@lru_cache(None)
def quantize_int8(columns: int, form: PackedGroup) -> tirx.PrimFunc:
    """(x -> digits, scales, offsets), parallel over tokens.

    x float32 [n, T, K]; scales float32 [n, T, G], max|x| / 127 of each group; offsets int32 [n, T, G], -max_int times
    the sum of a group's digits, which folds the weights' offset into an accumulator's start; digits int32
    [n, T, words * quads]: four signed bytes each, the elements of ``form.quads`` of each word's span of inputs.
    """
    groups, quads = form.groups(columns), form.words * len(form.quads)
    width = vector_width(form.group)
    parts = form.group // width
    zero = form.group  # where the bytes lie that stand for no field
    order = []
    for word in range(form.words):
        for quad in form.quads:
            order += [word * form.fields + field for field in quad] + [zero] * (4 - len(quad))

    @prim_func
    def kernel():
        inputs, rows = T.int64(), T.int64()
        x = arg("x", (inputs, rows, columns))
        digits = arg("digits", (inputs, rows, groups * quads), "int32")
        scales = arg("scales", (inputs, rows, groups))
        offsets = arg("offsets", (inputs, rows, groups), "int32")

        def last_group(n, t, length: int):
            """The ``length`` inputs of a group that the row ends in, then zeros."""
            padded = registers((form.group,))
            for i in range(parts):
                T.buffer_store(padded, constant(0.0, width), [span(i * width, width)])
            for i in range(length):
                T.buffer_store(padded, x[n, t, columns - length + i], [i])
            return [padded[span(i * width, width)] for i in range(parts)]

        def quantize_group(n, t, g, values: list):
            values = [T.bind(value) for value in values]
            top = largest_magnitude(values, width)
            inverse = T.bind(splat(T.float32(LARGEST) / T.max(top, T.float32(1e-30)), width))
            numbers = [T.bind(cast(T.nearbyint(value * inverse), "int32", width)) for value in values]
            total = sum_lanes(reduce(lambda a, b: a + b, numbers))
            octets = [cast(number, "int8", width) for number in numbers] + [splat(T.int8(0), width)]
            packed = T.reinterpret(T.Shuffle(octets, order), dtype=f"int32x{quads}")
            T.buffer_store(digits, packed, [n, t, T.ramp(g * quads, 1, quads)])
            T.buffer_store(scales, top * T.float32(1 / LARGEST), [n, t, g])
            T.buffer_store(offsets, total * -form.max_int, [n, t, g])

        with root_block(), T.parallel(0, rows) as t, T.serial(0, inputs) as n:
            with T.serial(0, columns // form.group) as g:
                quantize_group(n, t, g, [x[n, t, span(g * form.group + i * width, width)] for i in range(parts)])
            if columns % form.group:
                quantize_group(n, t, groups - 1, last_group(n, t, columns % form.group))

    return kernel

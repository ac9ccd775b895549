"""Lists the inputs of a product that are not zero, as float32: see ``lists``."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, prim_func, root_block, span, splat
from .lists import AHEAD, compress, count, end_list, magnitude, not_listed
from .simd import LANES, registers


@lru_cache(None)
def list_inputs(columns: int, group: int, skip: bool = True) -> tirx.PrimFunc:
    """(x -> values, inputs, bounds).

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

        with root_block(), T.serial(0, rows) as t:
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

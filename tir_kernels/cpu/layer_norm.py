"""Layer norm over the channels of each row, in float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, constant, prim_func, root_block, span, splat
from ..norm import normalized
from .simd import reduce_add, registers, vector_width


def mean_and_scale(load: Callable, extent: int, width: int, epsilon: float, unrolled: bool = False):
    """Mean and 1 / sqrt(variance + epsilon) of ``load(i)``, vectors of ``width`` from i on, as bound scalars; ``unrolled``
    without an array for the sums."""
    lanes = span(0, width)

    def looped_sum(term: Callable):
        total = registers((width,))
        T.buffer_store(total, constant(0.0, width), [lanes])
        with T.serial(0, extent // width) as i:
            T.buffer_store(total, total[lanes] + term(load(i * width)), [lanes])
        return total[lanes]

    def unrolled_sum(term: Callable):
        total = constant(0.0, width)
        for i in range(0, extent, width):
            total = T.bind(total + term(load(i)))
        return total

    def square(centered):
        centered = T.bind(centered)
        return centered * centered

    total = unrolled_sum if unrolled else looped_sum
    mean = T.bind(reduce_add(total(lambda value: value), width) * T.float32(1.0 / extent))
    variance = reduce_add(total(lambda value: square(value - splat(mean, width))), width) * T.float32(1.0 / extent)
    return mean, T.bind(T.float32(1.0) / T.sqrt(variance + T.float32(epsilon)))


@lru_cache(None)
def layer_norm(channels: int, epsilon: float) -> tirx.PrimFunc:
    """(x [1, T, C], weight [C], bias [C] -> out [1, T, C]), float32."""
    width = vector_width(channels)

    @prim_func
    def kernel():
        rows = T.int64()
        x = arg("x", (1, rows, channels))
        weight, bias = arg("weight", (channels,)), arg("bias", (channels,))
        out = arg("out", (1, rows, channels))
        with root_block(), T.parallel(0, rows) as t:
            mean, scale = mean_and_scale(lambda i: x[0, t, span(i, width)], channels, width, epsilon)
            with T.serial(0, channels // width) as i:
                at = span(i * width, width)
                value = normalized(x[0, t, at], mean, scale, weight[at], bias[at], width)
                T.buffer_store(out, value, [0, t, at])

    return kernel

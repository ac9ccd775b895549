"""Layer norm over the channels of each row, in float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .builder import arg, prim_func, registers
from .simd import constant, reduce_add, span, splat, vector_width


def mean_and_scale(load: Callable, extent: int, width: int, epsilon: float):
    """Mean and 1 / sqrt(variance + epsilon) of ``load(i)``, vectors of ``width`` from i on, as bound scalars."""
    total = registers((2, width))
    lanes = span(0, width)
    for i in range(2):
        T.buffer_store(total, constant(0.0, width), [i, lanes])
    with T.serial(0, extent // width) as i:
        T.buffer_store(total, total[0, lanes] + load(i * width), [0, lanes])
    mean = T.bind(reduce_add(total[0, lanes], width) * T.float32(1.0 / extent))
    with T.serial(0, extent // width) as i:
        centred = T.bind(load(i * width) - splat(mean, width))
        T.buffer_store(total, total[1, lanes] + centred * centred, [1, lanes])
    variance = reduce_add(total[1, lanes], width) * T.float32(1.0 / extent)
    return mean, T.bind(T.float32(1.0) / T.sqrt(variance + T.float32(epsilon)))


@lru_cache(None)
def layer_norm(channels: int, epsilon: float) -> tirx.PrimFunc:
    """(x [1, T, C], weight [C], bias [C] -> out [1, T, C]), float32; CPU form."""
    width = vector_width(channels)

    @prim_func
    def kernel():
        rows = T.int64()
        x = arg("x", (1, rows, channels))
        weight, bias = arg("weight", (channels,)), arg("bias", (channels,))
        out = arg("out", (1, rows, channels))
        with T.sblock("root"):
            T.reads()
            T.writes()
            with T.parallel(0, rows) as t:
                mean, scale = mean_and_scale(lambda i: x[0, t, span(i, width)], channels, width, epsilon)
                with T.serial(0, channels // width) as i:
                    at = span(i * width, width)
                    normed = (x[0, t, at] - splat(mean, width)) * splat(scale, width)
                    T.buffer_store(out, normed * weight[at] + bias[at], [0, t, at])

    return kernel

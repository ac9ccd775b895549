"""Layer norm over the channels of each row, in float32."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, prim_func, size, span
from ..norm import normalized
from .threads import THREADS, each, grid, narrow, shared, statistics, vector_of


@lru_cache(None)
def layer_norm(channels: int, epsilon: float, dtype: str = "float32") -> tirx.PrimFunc:
    """(x [1, T, C], weight [C], bias [C] -> out [1, T, C] of ``dtype``), the others float32; a block of threads a row."""
    width = vector_of("float32", channels)

    @prim_func
    def kernel():
        rows = size("rows")
        x = arg("x", (1, rows, channels))
        weight, bias = arg("weight", (channels,)), arg("bias", (channels,))
        out = arg("out", (1, rows, channels), dtype)
        with grid(rows) as (t, thread):
            scratch = shared((1, THREADS))
            ((mean, scale),) = statistics(
                [lambda c: x[0, t, span(c, width)]], channels, thread, THREADS, width, epsilon, scratch
            )

            def write(_, c):
                at = span(c, width)
                value = normalized(x[0, t, at], mean, scale, weight[at], bias[at], width)
                T.buffer_store(out, narrow(value, dtype, width), [0, t, at])

            each(channels, thread, THREADS, width, write)

    return kernel

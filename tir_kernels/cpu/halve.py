"""The residual stream by half, every few layers, so that float16 holds it (ChatRWKV ``model.py``, ``RESCALE_LAYER``)."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, constant, prim_func, root_block, size, span
from .simd import vector_width


@lru_cache(None)
def halve(channels: int) -> tirx.PrimFunc:
    """(x -> out), float32 [1, T, C]; exact."""
    width = vector_width(channels)

    @prim_func
    def kernel():
        rows = size("rows")
        x, out = arg("x", (1, rows, channels)), arg("out", (1, rows, channels))
        with root_block(), T.parallel(0, rows) as t, T.serial(0, channels // width) as i:
            at = span(i * width, width)
            T.buffer_store(out, x[0, t, at] * constant(0.5, width), [0, t, at])

    return kernel

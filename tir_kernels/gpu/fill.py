"""Writing memory at full speed, before ``stream`` reads it."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, constant, prim_func, size
from .threads import THREADS, grid


@lru_cache(None)
def fill() -> tirx.PrimFunc:
    """(x float32 [blocks, n]), n is a multiple of 1024: x becomes ones, a block of threads a row."""
    width = 4

    @prim_func
    def kernel():
        blocks, extent = size("blocks"), size("extent")
        x = arg("x", (blocks, extent))
        with grid(blocks) as (block, thread), T.serial(0, T.cast(extent, "int32") // (THREADS * width)) as i:
            T.buffer_store(x, constant(1.0, width), [block, T.ramp((i * THREADS + thread) * width, 1, width)])

    return kernel

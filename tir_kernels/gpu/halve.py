"""The residual stream by half: see ``cpu.halve``."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, prim_func, size
from .threads import THREADS, grid


@lru_cache(None)
def halve(channels: int) -> tirx.PrimFunc:
    """(x -> out), float32 [1, T, C]; exact, a thread for every element."""

    @prim_func
    def kernel():
        rows = size("rows")
        x, out = arg("x", (1, rows, channels)), arg("out", (1, rows, channels))
        with grid(rows, -(-channels // THREADS)) as (t, block, thread):
            c = T.bind(block * THREADS + thread)
            with T.If(c < channels), T.Then():
                T.buffer_store(out, x[0, t, c] * T.float32(0.5), [0, t, c])

    return kernel

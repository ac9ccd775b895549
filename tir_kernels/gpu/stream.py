"""Reading memory at full speed: the limit that decoding is held to."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, prim_func, size
from .threads import THREADS, grid, lanes_of, registers, shared, totals


@lru_cache(None)
def stream() -> tirx.PrimFunc:
    """(x float32 [blocks, n] -> sums [blocks]), n is a multiple of 4096; a block of threads a row."""
    width, loads = 4, 4

    @prim_func
    def kernel():
        blocks, extent = size("blocks"), size("extent")
        x = arg("x", (blocks, extent))
        sums = arg("sums", (blocks,))
        with grid(blocks) as (block, thread):
            scratch = shared((1, THREADS))
            acc = registers((1,))
            T.buffer_store(acc, T.float32(0.0), [0])
            with T.serial(0, T.cast(extent, "int32") // (loads * THREADS * width)) as i:
                at = [T.ramp(((i * loads + j) * THREADS + thread) * width, 1, width) for j in range(loads)]
                total = T.bind((x[block, at[0]] + x[block, at[1]]) + (x[block, at[2]] + x[block, at[3]]))
                for value in lanes_of(total, width):
                    T.buffer_store(acc, acc[0] + value, [0])
            (total,) = totals([acc[0]], thread, THREADS, scratch)
            with T.If(thread == 0), T.Then():
                T.buffer_store(sums, total, [block])

    return kernel

"""Reading and writing memory at full speed: the limit that decoding is held to."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .builder import arg, prim_func, registers, size
from .simd import LANES, constant, prefetch, reduce_add, span
from .threads import THREADS, grid, lanes_of, shared, totals

CHAINS = 8  # vectors in flight, so that additions do not wait for one another
AHEAD = 1024  # elements, 4 KB, as in gemv


@lru_cache(None)
def stream() -> tirx.PrimFunc:
    """(x float32 [blocks, n] -> sums [blocks]); n a multiple of 128; CPU form. Every byte of x is read once."""
    step = CHAINS * LANES

    @prim_func
    def kernel():
        blocks, extent = T.int64(), T.int64()
        x = arg("x", (blocks, extent))
        sums = arg("sums", (blocks,))
        lanes = span(0, LANES)
        with T.sblock("root"):
            T.reads()
            T.writes()
            with T.parallel(0, blocks) as block:
                acc = registers((CHAINS, LANES))
                for j in range(CHAINS):
                    T.buffer_store(acc, constant(0.0, LANES), [j, lanes])
                with T.serial(0, extent // step) as i:
                    for j in range(CHAINS):
                        prefetch(T.address_of(x[block, i * step + j * LANES + AHEAD]))
                        at = T.ramp(i * step + j * LANES, 1, LANES)
                        T.buffer_store(acc, acc[j, lanes] + x[block, at], [j, lanes])
                total = acc[0, lanes]
                for j in range(1, CHAINS):
                    total = total + acc[j, lanes]
                T.buffer_store(sums, reduce_add(T.bind(total), LANES), [block])

    return kernel


@lru_cache(None)
def fill() -> tirx.PrimFunc:
    """(x float32 [blocks, n]), n a multiple of 16: ones; CPU form. Every thread touches first what it reads in ``stream``."""

    @prim_func
    def kernel():
        blocks, extent = T.int64(), T.int64()
        x = arg("x", (blocks, extent))
        with T.sblock("root"):
            T.reads()
            T.writes()
            with T.parallel(0, blocks) as block, T.serial(0, extent // LANES) as i:
                T.buffer_store(x, constant(1.0, LANES), [block, span(i * LANES, LANES)])

    return kernel


@lru_cache(None)
def fill_gpu() -> tirx.PrimFunc:
    """``fill`` with a block of threads a row; n a multiple of 1024."""
    width = 4

    @prim_func
    def kernel():
        blocks, extent = size("blocks"), size("extent")
        x = arg("x", (blocks, extent))
        with grid(blocks) as (block, thread), T.serial(0, T.cast(extent, "int32") // (THREADS * width)) as i:
            T.buffer_store(x, constant(1.0, width), [block, T.ramp((i * THREADS + thread) * width, 1, width)])

    return kernel


@lru_cache(None)
def stream_gpu() -> tirx.PrimFunc:
    """``stream`` with a block of threads a row; n a multiple of 4096."""
    width, loads = 4, 4

    @prim_func
    def kernel():
        blocks, extent = size("blocks"), size("extent")
        x = arg("x", (blocks, extent))
        sums = arg("sums", (blocks,))
        with grid(blocks) as (block, thread):
            scratch = shared((1, THREADS))
            acc = registers((1,), device="gpu")
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

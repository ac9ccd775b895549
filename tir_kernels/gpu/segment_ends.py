"""Where sequences end among rows: see ``cpu.segment_ends``."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, prim_func, size
from .threads import THREADS, grid


@lru_cache(None)
def ends_of_last() -> tirx.PrimFunc:
    """(positions int32 [B] -> ends int32 [B]): the row after the last of each sequence."""

    @prim_func
    def kernel():
        batch = size("batch")
        last, ends = arg("last", (batch,), "int32"), arg("ends", (batch,), "int32")
        with grid((batch + THREADS - 1) // THREADS) as (block, thread):
            b = T.bind(block * THREADS + thread)
            with T.If(b < batch), T.Then():
                T.buffer_store(ends, last[b] + 1, [b])

    return kernel


@lru_cache(None)
def ends_of_rows(channels: int) -> tirx.PrimFunc:
    """(x [1, T, C] -> ends int32 [T]): every row is a sequence of one."""

    @prim_func
    def kernel():
        rows = size("rows")
        arg("x", (1, rows, channels))
        ends = arg("ends", (rows,), "int32")
        with grid((rows + THREADS - 1) // THREADS) as (block, thread):
            t = T.bind(block * THREADS + thread)
            with T.If(t < rows), T.Then():
                T.buffer_store(ends, T.cast(t, "int32") + 1, [t])

    return kernel


@lru_cache(None)
def end_of_all(channels: int) -> tirx.PrimFunc:
    """(x [1, T, C] -> ends int32 [1]): all rows are one sequence."""

    @prim_func
    def kernel():
        rows = size("rows")
        arg("x", (1, rows, channels))
        ends = arg("ends", (1,), "int32")
        with grid(1, threads=1) as (block, _):
            T.buffer_store(ends, T.cast(rows, "int32"), [block])

    return kernel

"""Where sequences end among rows, for callers who say it otherwise; on the device whose loop over elements ``device`` holds."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .builder import arg, prim_func, size


@lru_cache(None)
def ends_of_last(device: ModuleType) -> tirx.PrimFunc:
    """(positions int32 [B] -> ends int32 [B]): the row after the last of each sequence."""

    @prim_func
    def kernel():
        batch = size("batch")
        last, ends = arg("last", (batch,), "int32"), arg("ends", (batch,), "int32")
        device.each(batch, lambda b: T.buffer_store(ends, last[b] + 1, [b]))

    return kernel


@lru_cache(None)
def ends_of_rows(channels: int, device: ModuleType) -> tirx.PrimFunc:
    """(x [1, T, C] -> ends int32 [T]): every row is a sequence of its own."""

    @prim_func
    def kernel():
        rows = size("rows")
        arg("x", (1, rows, channels))
        ends = arg("ends", (rows,), "int32")
        device.each(rows, lambda t: T.buffer_store(ends, T.cast(t, "int32") + 1, [t]))

    return kernel


@lru_cache(None)
def end_of_all(channels: int, device: ModuleType) -> tirx.PrimFunc:
    """(x [1, T, C] -> ends int32 [1]): all rows are one sequence."""

    @prim_func
    def kernel():
        rows = size("rows")
        arg("x", (1, rows, channels))
        ends = arg("ends", (1,), "int32")
        device.each(1, lambda b: T.buffer_store(ends, T.cast(rows, "int32"), [b]))

    return kernel

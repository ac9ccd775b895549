"""The last row of every sequence of a ragged prefill, which is what the head reads."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, prim_func, root_block


@lru_cache(None)
def last_rows(channels: int) -> tirx.PrimFunc:
    """(x float32 [1, T, C], segment_ends int32 [B] -> out [1, B, C]): the last row of every sequence."""

    @prim_func
    def kernel():
        batch, rows = T.int64(), T.int64()
        x = arg("x", (1, rows, channels))
        ends = arg("segment_ends", (batch,), "int32")
        out = arg("out", (1, batch, channels))
        with root_block(), T.serial(0, batch) as b, T.serial(0, channels) as c:
            T.buffer_store(out, x[0, T.cast(ends[b], "int64") - 1, c], [0, b, c])

    return kernel

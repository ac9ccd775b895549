"""Rows into the slots of a pool of states, where the operators of a graph have no word for an update in place."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from .builder import arg, size


@lru_cache(None)
def keep_rows(channels: int) -> tirx.PrimFunc:
    """(pool [S, C], rows [B, C], slots int32 [B]): pool[slots[b]] = rows[b], float32. Without a schedule."""
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        batch, num_slots = size("batch"), size("num_slots")
        pool, rows = arg("pool", (num_slots, channels)), arg("rows", (batch, channels))
        slots = arg("slots", (batch,), "int32")
        with T.grid(batch, channels) as (b, c), T.sblock("keep"):
            vb, vc = T.axis.spatial(batch, b), T.axis.spatial(channels, c)
            T.reads(rows[vb, vc], slots[vb])
            T.writes(pool[T.cast(slots[vb], "int64"), vc])
            T.buffer_store(pool, rows[vb, vc], [T.cast(slots[vb], "int64"), vc])
    return builder.get()

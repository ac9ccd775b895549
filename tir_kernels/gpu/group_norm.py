"""Group norm over the heads of each row, and what follows it, in float32: see ``cpu.group_norm``."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, prim_func, size, span
from ..norm import normalized
from .threads import THREADS, each, grid, narrow, shared, statistics, threads_for, vector_of


@lru_cache(None)
def group_norm(
    num_groups: int, group_size: int, epsilon: float, gated: bool, dtype: str = "float32", added: bool = False
) -> tirx.PrimFunc:
    """(x, weight, bias[, added][, gate] -> out of ``dtype``); shapes as in ``cpu.group_norm``, each group on threads
    of its own."""
    width = vector_of("float32", group_size)
    lanes = threads_for(-(-group_size // width))
    channels, per_block = num_groups * group_size, THREADS // lanes
    blocks = -(-num_groups // per_block)

    @prim_func
    def kernel():
        rows = size("rows")
        x = arg("x", (1, rows, channels))
        weight, bias = arg("weight", (channels,)), arg("bias", (channels,))
        bonus = arg("added", (1, rows, channels)) if added else None
        gate = arg("gate", (1, rows, channels)) if gated else None
        out = arg("out", (1, rows, channels), dtype)
        with grid(rows, blocks) as (t, block, thread):
            scratch = shared((1, THREADS))
            group = T.bind(block * per_block + thread // lanes)
            start = T.bind(T.min(group, num_groups - 1) * group_size)
            ((mean, scale),) = statistics(
                [lambda c: x[0, t, span(start + c, width)]], group_size, thread, lanes, width, epsilon, scratch
            )

            def write(_, c):
                at = span(start + c, width)
                value = normalized(x[0, t, at], mean, scale, weight[at], bias[at], width)
                value = value + bonus[0, t, at] if added else value
                T.buffer_store(out, narrow(value * gate[0, t, at] if gated else value, dtype, width), [0, t, at])

            with T.If(group < num_groups), T.Then():
                each(group_size, thread % lanes, lanes, width, write)

    return kernel

"""Rows of the embedding table, expanded to float32: see ``cpu.embedding``."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, prim_func, size
from ..rows import Rows
from .threads import THREADS, grid


@lru_cache(None)
def embedding(vocab_size: int, channels: int, form: Rows) -> tirx.PrimFunc:
    """(tokens, table.. -> out); shapes as in ``cpu.embedding``, a thread for every element."""

    @prim_func
    def kernel():
        rows = size("rows")
        tokens = arg("tokens", (rows,), "int32")
        table = form.args("table", vocab_size, channels)
        out = arg("out", (1, rows, channels))
        with grid(rows, -(-channels // THREADS)) as (t, block, thread):
            c = T.bind(block * THREADS + thread)
            token = T.bind(T.max(T.min(tokens[t], T.int32(vocab_size - 1)), T.int32(0)))
            with T.If(c < channels), T.Then():
                T.buffer_store(out, form.element(table, token, c), [0, t, c])

    return kernel

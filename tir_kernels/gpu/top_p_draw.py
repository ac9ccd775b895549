"""Tokens drawn among the likeliest on a GPU, a block of threads a draw."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, prim_func, size
from .draw import Sums
from .threads import grid, shared


@lru_cache(None)
def top_p_draw(vocab: int) -> tirx.PrimFunc:
    """(sorted probabilities float32 [B, V], the largest first, their tokens int32 [B, V], drawn float32 [n], rows int32 [n],
    top_p float32 [B] -> tokens int32 [n]): drawn among the likeliest that make up ``top_p`` together."""

    @prim_func
    def kernel():
        batch, draws = size("batch"), size("draws")
        probs, tokens = arg("probs", (batch, vocab)), arg("tokens", (batch, vocab), "int32")
        drawn, rows = arg("drawn", (draws,)), arg("rows", (draws,), "int32")
        top_p = arg("top_p", (batch,))
        out = arg("out", (draws,), "int32")
        with grid(draws) as (i, thread):
            row = T.bind(T.cast(rows[i], "int64"))
            sums, found = Sums(vocab, thread, lambda v: probs[row, v]), shared((1,), "int32")
            kept = sums.first_beyond(top_p[row] * sums.total, found)
            sums.first_beyond(drawn[i] * kept, found)
            with T.If(thread == 0), T.Then():
                T.buffer_store(out, tokens[row, T.cast(found[0], "int64")], [i])

    return kernel

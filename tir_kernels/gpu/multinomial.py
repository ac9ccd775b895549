"""Tokens drawn by their probabilities on a GPU, a block of threads a draw."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, prim_func, size
from .draw import Sums
from .threads import grid, shared


@lru_cache(None)
def multinomial(vocab: int) -> tirx.PrimFunc:
    """(probabilities float32 [B, V], drawn float32 [n], rows int32 [n] -> tokens int32 [n]): the first token with which the
    sum exceeds the drawn part of the row's."""

    @prim_func
    def kernel():
        batch, draws = size("batch"), size("draws")
        probs = arg("probs", (batch, vocab))
        drawn, rows = arg("drawn", (draws,)), arg("rows", (draws,), "int32")
        out = arg("out", (draws,), "int32")
        with grid(draws) as (i, thread):
            row = T.bind(T.cast(rows[i], "int64"))
            sums, found = Sums(vocab, thread, lambda v: probs[row, v]), shared((1,), "int32")
            sums.first_beyond(drawn[i] * sums.total, found)
            with T.If(thread == 0), T.Then():
                T.buffer_store(out, found[0], [i])

    return kernel

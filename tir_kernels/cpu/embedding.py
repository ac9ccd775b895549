"""Rows of the embedding table, expanded to float32. The table keeps its stored form: a row is read once a token."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, prim_func, root_block
from ..rows import Rows


@lru_cache(None)
def embedding(vocab_size: int, channels: int, form: Rows) -> tirx.PrimFunc:
    """(tokens, table.. -> out float32 [1, T, C]).

    tokens int32 [T]; table [V, C] as ``rows`` says. A token outside the vocabulary reads row 0 or V - 1: the engine
    refuses it before."""

    @prim_func
    def kernel():
        rows = T.int64()
        tokens = arg("tokens", (rows,), "int32")
        table = form.args("table", vocab_size, channels)
        out = arg("out", (1, rows, channels))
        with root_block(), T.parallel(0, rows) as t:
            token = T.bind(T.max(T.min(T.cast(tokens[t], "int64"), T.int64(vocab_size - 1)), T.int64(0)))
            with T.serial(0, channels) as c:
                T.buffer_store(out, form.element(table, token, c), [0, t, c])

    return kernel

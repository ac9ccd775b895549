"""The matrix that a table has for each token, times a vector ("DeepEmbed" of RWKV-7a, RWKV-LM's ``rwkv_v7a_demo.py``)."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, prim_func, root_block
from ..rows import Rows
from .simd import registers


@lru_cache(None)
def token_matrix(vocab_size: int, size: int, form: Rows) -> tirx.PrimFunc:
    """(tokens, x, table.. -> out).

    tokens int32 [T]; x and out float32 [1, T, n]; table [V, n * n] as ``rows`` says, whose row of a token is a matrix
    [input, output]. A token outside the vocabulary reads row 0 or V - 1: the engine refuses it before."""

    @prim_func
    def kernel():
        rows = T.int64()
        tokens = arg("tokens", (rows,), "int32")
        x = arg("x", (1, rows, size))
        table = form.args("table", vocab_size, size * size)
        out = arg("out", (1, rows, size))
        with root_block(), T.parallel(0, rows) as t:
            token = T.bind(T.max(T.min(T.cast(tokens[t], "int64"), T.int64(vocab_size - 1)), T.int64(0)))
            sums = registers((size,))
            with T.serial(0, size) as j:
                T.buffer_store(sums, T.float32(0.0), [j])
            with T.serial(0, size) as i:
                given = T.bind(x[0, t, i])
                with T.serial(0, size) as j:
                    T.buffer_store(sums, sums[j] + given * form.element(table, token, i * size + j), [j])
            with T.serial(0, size) as j:
                T.buffer_store(out, sums[j], [0, t, j])

    return kernel

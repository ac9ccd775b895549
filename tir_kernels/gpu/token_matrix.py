"""The matrix that a table has for each token, times a vector: see ``cpu.token_matrix``."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, prim_func
from ..builder import size as extent
from ..rows import Rows
from .threads import each, grid, registers, threads_for


@lru_cache(None)
def token_matrix(vocab_size: int, size: int, form: Rows) -> tirx.PrimFunc:
    """(tokens, x, table.. -> out); shapes as in ``cpu.token_matrix``. A block of threads runs a row, each of them an output."""
    threads = threads_for(size)

    @prim_func
    def kernel():
        rows = extent("rows")
        tokens = arg("tokens", (rows,), "int32")
        x = arg("x", (1, rows, size))
        table = form.args("table", vocab_size, size * size)
        out = arg("out", (1, rows, size))
        with grid(rows, threads=threads) as (t, thread):
            token = T.bind(T.cast(T.max(T.min(tokens[t], T.int32(vocab_size - 1)), T.int32(0)), "int64"))
            acc = registers((1,))

            def column(_, j) -> None:
                T.buffer_store(acc, T.float32(0.0), [0])
                with T.serial(0, size) as i:
                    T.buffer_store(acc, acc[0] + x[0, t, i] * form.element(table, token, i * size + j), [0])
                T.buffer_store(out, acc[0], [0, t, j])

            each(size, thread, threads, 1, column)

    return kernel

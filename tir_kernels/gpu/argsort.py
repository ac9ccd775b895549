"""The order of probabilities on a GPU: how many come before each, counted by a thread for each over tiles in shared memory."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, prim_func, size
from .threads import THREADS, barrier, grid, registers, shared


@lru_cache(None)
def argsort(vocab: int) -> tirx.PrimFunc:
    """(probabilities float32 [B, V] -> sorted float32 [B, V], tokens int32 [B, V]): the largest first, of equal ones the
    first."""
    blocks = -(-vocab // THREADS)

    @prim_func
    def kernel():
        batch = size("batch")
        probs = arg("probs", (batch, vocab))
        ordered, tokens = arg("ordered", (batch, vocab)), arg("tokens", (batch, vocab), "int32")
        with grid(batch, blocks) as (b, block, thread):
            tile, before = shared((THREADS,)), registers((1,), "int32")
            token = T.bind(block * THREADS + thread)
            own = T.bind(probs[b, T.min(token, T.int64(vocab - 1))])
            T.buffer_store(before, T.int32(0), [0])
            with T.serial(0, blocks) as j:
                other = T.bind(j * THREADS + thread)
                inside = probs[b, T.min(other, T.int64(vocab - 1))]
                T.buffer_store(tile, T.Select(other < vocab, inside, T.float32(-1.0)), [thread])
                barrier()
                with T.serial(0, THREADS) as i:
                    equal_before = T.And(tile[i] == own, j * THREADS + i < token)
                    counts = T.Or(tile[i] > own, equal_before)
                    T.buffer_store(before, before[0] + T.cast(counts, "int32"), [0])
                barrier()
            with T.If(token < vocab), T.Then():
                at = T.bind(T.cast(before[0], "int64"))
                T.buffer_store(ordered, own, [b, at])
                T.buffer_store(tokens, T.cast(token, "int32"), [b, at])

    return kernel

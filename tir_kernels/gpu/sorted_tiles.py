"""The first half of the order of probabilities on a GPU: tiles of them, each in its own order."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, prim_func, size
from .threads import THREADS, barrier, grid, registers, shared

TILE = 1024


@lru_cache(None)
def sorted_tiles(vocab: int) -> tirx.PrimFunc:
    """(probabilities float32 [B, V] -> sorted float32 [B, V], tokens int32 [B, V]): in each ``TILE`` the largest first, of
    equal ones the first. What is no number counts as -1."""
    tiles, own = -(-vocab // TILE), TILE // THREADS

    @prim_func
    def kernel():
        batch = size("batch")
        probs = arg("probs", (batch, vocab))
        ordered, tokens = arg("ordered", (batch, vocab)), arg("tokens", (batch, vocab), "int32")
        with grid(batch, tiles) as (b, tile, thread):
            held, before = shared((TILE,)), registers((own,), "int32")
            for i in range(own):
                token = T.bind(tile * TILE + i * THREADS + thread)
                value = T.bind(probs[b, T.min(token, T.int64(vocab - 1))])
                number = T.Select(value == value, value, T.float32(-1.0))
                T.buffer_store(held, T.Select(token < vocab, number, T.float32(-2.0)), [i * THREADS + thread])
                T.buffer_store(before, T.int32(0), [i])
            barrier()
            with T.serial(0, TILE) as other:
                value = T.bind(held[other])
                for i in range(own):
                    at = i * THREADS + thread
                    counts = T.Or(value > held[at], T.And(value == held[at], other < at))
                    T.buffer_store(before, before[i] + T.cast(counts, "int32"), [i])
            for i in range(own):
                token = T.bind(tile * TILE + i * THREADS + thread)
                with T.If(token < vocab), T.Then():
                    at = T.bind(tile * TILE + T.cast(before[i], "int64"))
                    T.buffer_store(ordered, held[i * THREADS + thread], [b, at])
                    T.buffer_store(tokens, T.cast(token, "int32"), [b, at])

    return kernel

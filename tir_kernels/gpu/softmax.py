"""Probabilities of logits at a temperature: see ``cpu.softmax``."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, prim_func, size
from ..sampling import COLD
from .threads import THREADS, each, grid, registers, shared, totals


@lru_cache(None)
def softmax(vocab: int) -> tirx.PrimFunc:
    """(logits [B, 1, V], temperatures [B] -> probabilities [B, 1, V]), float32: a block a row."""

    @prim_func
    def kernel():
        batch = size("batch")
        logits, temperatures = arg("logits", (batch, 1, vocab)), arg("temperatures", (batch,))
        out = arg("out", (batch, 1, vocab))
        with grid(batch) as (b, thread):
            scratch, found = shared((1, THREADS)), registers((2,))
            T.buffer_store(found, logits[b, 0, 0], [0])

            def larger(_, v):
                T.buffer_store(found, T.max(found[0], logits[b, 0, v]), [0])

            each(vocab, thread, THREADS, 1, larger, unrolled=False)
            (most,) = totals([found[0]], thread, THREADS, scratch, T.max)
            cold = temperatures[b] <= T.float32(COLD)
            scale = T.bind(T.float32(1.0) / T.Select(cold, T.float32(1.0), temperatures[b]))
            T.buffer_store(found, T.float32(0.0), [1])

            def share(v):
                below = T.bind(logits[b, 0, v] - most)
                return T.Select(cold, T.cast(below == T.float32(0.0), "float32"), T.exp(below * scale))

            each(
                vocab, thread, THREADS, 1, lambda _, v: T.buffer_store(found, found[1] + share(v), [1]), unrolled=False
            )
            (total,) = totals([found[1]], thread, THREADS, scratch)
            each(
                vocab, thread, THREADS, 1, lambda _, v: T.buffer_store(out, share(v) / total, [b, 0, v]), unrolled=False
            )

    return kernel

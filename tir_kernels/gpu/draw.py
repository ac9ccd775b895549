"""Choosing among probabilities on a GPU, a block of threads a draw: each thread sums a part of the row, and the one in whose
part the sum exceeds what was drawn goes through it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, prim_func, size
from .threads import THREADS, barrier, grid, registers, shared


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


class Sums:
    """The sums of a row in its order, of which every thread has a part, [first, end)."""

    def __init__(self, vocab: int, thread, load: Callable):
        self.vocab, self.load, self.thread = vocab, load, thread
        part = -(-vocab // THREADS)
        self.first = T.bind(T.min(T.int64(vocab), thread * part))
        self.end = T.bind(T.min(T.int64(vocab), self.first + part))
        parts, sums = shared((THREADS,)), registers((3,))
        for i in range(3):
            T.buffer_store(sums, T.float32(0.0), [i])
        with T.serial(self.first, self.end) as v:
            T.buffer_store(sums, sums[0] + load(v), [0])
        T.buffer_store(parts, sums[0], [thread])
        barrier()
        with T.serial(0, THREADS) as i:
            T.buffer_store(sums, T.Select(i == thread, sums[2], sums[1]), [1])
            T.buffer_store(sums, sums[2] + parts[i], [2])
        self.before, self.total = T.bind(sums[1]), T.bind(sums[2])
        self.until = T.bind(self.before + sums[0])

    def first_beyond(self, bound, found):
        """Put the first element into ``found`` with which the sum exceeds ``bound``, else the last one; return that sum, in all
        threads."""
        bound, reached = T.bind(bound), shared((1,))
        with T.If(self.thread == 0), T.Then():
            T.buffer_store(found, T.int32(self.vocab - 1), [0])
            T.buffer_store(reached, self.total, [0])
        barrier()
        with T.If(T.And(self.before <= bound, self.until > bound)), T.Then():
            at, total = registers((1,), "int32"), registers((1,))
            T.buffer_store(at, T.int32(-1), [0])
            T.buffer_store(total, self.before, [0])
            with T.serial(self.first, self.end) as v, T.If(at[0] < 0), T.Then():
                T.buffer_store(total, total[0] + self.load(v), [0])
                with T.If(T.Or(total[0] > bound, v == self.end - 1)), T.Then():
                    T.buffer_store(at, T.cast(v, "int32"), [0])
            T.buffer_store(found, at[0], [0])
            T.buffer_store(reached, total[0], [0])
        barrier()
        return T.bind(reached[0])

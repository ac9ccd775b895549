"""Where the sum of a row exceeds a bound: each thread of a block sums a part, and one goes through its part again."""

from __future__ import annotations

from collections.abc import Callable

from tvm.script.ir_builder import tirx as T

from .threads import THREADS, barrier, registers, shared


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

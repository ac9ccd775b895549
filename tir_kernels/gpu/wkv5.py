"""wkv of RWKV-5, in float32: formulas and the layout of the state are those of ``cpu.wkv5``."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import prim_func, span
from ..recurrence import Phase, recurrence_args
from ..segments import sequence
from .threads import THREADS, barrier, registers, shared, vector_of
from .wkv5_staged import COPIED, wkv5_staged

PARTS = 4  # T is sequential and a head has few columns: more threads than columns are busy


@lru_cache(None)
def wkv5(
    num_heads: int,
    head_size: int,
    phase: Phase = "prefill",
    in_place: bool = False,
    async_copies: bool = False,
) -> tirx.PrimFunc:
    """(r, k, v, w, u, state, segment_ends -> out, out_state), float32; arguments as in ``cpu.wkv5``. ``async_copies`` says that
    the device has them: prompts are for ``wkv5_staged`` then.

    A block of threads runs a head, up to ``PARTS`` of them a column of the state, each with its part of the keys."""
    heads, size = num_heads, head_size
    parts = next((n for n in (PARTS, 2) if size % n == 0 and size * n <= THREADS), 1)
    if async_copies and phase == "prefill" and size % COPIED == 0:
        return wkv5_staged(heads, size, parts, in_place)
    keys = size // parts
    lanes = vector_of("float32", keys)

    @prim_func(own=("reads", "writes"))
    def kernel():
        batch, (r, k, v), (w, u), (state,), ends, slots, (out,), (out_state,) = recurrence_args(
            heads * size, "rkv", dict.fromkeys("wu", (heads, size)), {"state": (heads, size, size)}, phase, in_place
        )

        def scan(b, h, part, i):
            """Keys ``part * keys`` and on, of column i."""
            slot, first, length = sequence(b, slots, ends)
            column, decay, bonus = (registers((keys,)) for _ in range(3))
            now, ahead = registers((2, keys)), registers((2, keys))
            value, value_ahead, acc = (registers((1,)) for _ in range(3))
            partial = shared((parts, size))

            def key_of(j):
                return part * keys + j

            def load(t):
                """Receptance and key of this thread's keys, and the value of its column."""
                for j in range(0, keys, lanes):
                    for row, source in enumerate((r, k)):
                        values = source[0, first + t, span(h * size + key_of(j), lanes)]
                        T.buffer_store(ahead, values, [row, span(j, lanes)])
                T.buffer_store(value_ahead, v[0, first + t, h * size + i], [0])

            for j in range(keys):
                T.buffer_store(column, state[slot, h, key_of(j), i], [j])
                T.buffer_store(decay, w[h, key_of(j)], [j])
                T.buffer_store(bonus, u[h, key_of(j)], [j])
            load(0)

            with T.serial(0, length) as t:
                for j in range(0, keys, lanes):
                    for row in range(2):
                        T.buffer_store(now, ahead[row, span(j, lanes)], [row, span(j, lanes)])
                T.buffer_store(value, value_ahead[0], [0])
                if ends is not None:
                    load(T.min(t + 1, length - 1))
                T.buffer_store(acc, T.float32(0.0), [0])
                with T.unroll(0, keys) as key, T.sblock("wkv"):
                    T.axis.spatial(batch, b)
                    T.axis.reduce(length, t)
                    T.axis.spatial(heads, h)
                    T.axis.spatial(size, i)
                    at = T.axis.reduce(size, key_of(key)) % keys
                    T.reads()
                    T.writes()
                    kv = T.bind(now[1, at] * value[0])
                    T.buffer_store(acc, acc[0] + now[0, at] * (column[at] + bonus[at] * kv), [0])
                    T.buffer_store(column, column[at] * decay[at] + kv, [at])
                T.buffer_store(partial, acc[0], [part, i])
                barrier()
                with T.If(part == 0), T.Then():
                    total = partial[0, i]
                    for other in range(1, parts):
                        total = total + partial[other, i]
                    T.buffer_store(out, total, [0, first + t, h * size + i])
                barrier()
            for j in range(keys):
                T.buffer_store(out_state, column[j], [slot, h, key_of(j), i])

        with T.thread_binding(0, batch * heads, thread="blockIdx.x") as bh:
            with T.thread_binding(0, parts * size, thread="threadIdx.x") as thread:
                scan(bh // heads, bh % heads, thread // size, thread % size)

    return kernel

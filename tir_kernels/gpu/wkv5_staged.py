"""wkv of RWKV-5 for prompts on GPUs that copy asynchronously: ``wkv5`` with the next tokens on their way to shared memory.

Receptance, key and value of ``stage_tokens`` tokens are a stage, of which one is computed with while the next arrives. The
parts of a column's sum wait in shared memory until the stage is done, so that there are two barriers a stage."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import prim_func, span
from ..recurrence import recurrence_args
from ..segments import sequence
from .tensor_core import call
from .threads import barrier, each, registers, shared

STAGES = 2
MOST_TOKENS = 8
COPIED = 4  # float32 in 16 bytes
SHARED_BYTES = 48 << 10


def stage_tokens(head_size: int, parts: int) -> int:
    """Tokens of a stage: as many as shared memory has room for, with the sums of ``parts`` threads for each column."""
    nbytes = (STAGES * 3 + parts) * head_size * 4
    return next(n for n in (MOST_TOKENS, 4, 2, 1) if n * nbytes <= SHARED_BYTES)


@lru_cache(None)
def wkv5_staged(num_heads: int, head_size: int, parts: int, in_place: bool = False) -> tirx.PrimFunc:
    """(r, k, v, w, u, state, segment_ends -> out, out_state); arguments as in ``cpu.wkv5``, with a head of whole multiples of
    ``COPIED``. A block of threads runs a head, ``parts`` of them a column of the state, each with its part of the keys."""
    heads, size, threads = num_heads, head_size, parts * head_size
    keys, tokens = head_size // parts, stage_tokens(head_size, parts)
    lanes = next(n for n in (4, 2, 1) if keys % n == 0)

    @prim_func
    def kernel():
        batch, (r, k, v), (w, u), (state,), ends, slots, (out,), (out_state,) = recurrence_args(
            heads * size, "rkv", dict.fromkeys("wu", (heads, size)), {"state": (heads, size, size)}, "prefill", in_place
        )

        def scan(b, h, thread):
            part, i = T.bind(thread // size), T.bind(thread % size)
            slot, first, length = sequence(b, slots, ends)
            staged = shared((STAGES, 3, tokens, size))
            partial = shared((tokens, parts, size))
            column, decay, bonus = (registers((keys,)) for _ in range(3))
            now, acc = registers((2, keys)), registers((1,))

            def begin(stage) -> None:
                """Set out to bring the tokens of a stage."""
                for row, source in enumerate((r, k, v)):

                    def copy(_, piece) -> None:
                        token, j = piece // (size // COPIED), piece % (size // COPIED) * COPIED
                        t = T.bind(stage * tokens + token)
                        to = T.address_of(staged[stage % STAGES, row, token, j])
                        call("async_copy", to, T.address_of(source[0, first + t, h * size + j]), t < length)

                    each(tokens * size // COPIED, thread, threads, 1, copy)
                call("async_commit")

            def compute(stage, token) -> None:
                """One token's share of its column, and the state after it."""
                for row in range(2):
                    for j in range(0, keys, lanes):
                        held = staged[stage % STAGES, row, token, span(part * keys + j, lanes)]
                        T.buffer_store(now, held, [row, span(j, lanes)])
                value = T.bind(staged[stage % STAGES, 2, token, i])
                T.buffer_store(acc, T.float32(0.0), [0])
                for j in range(keys):
                    kv = T.bind(now[1, j] * value)
                    T.buffer_store(acc, acc[0] + now[0, j] * (column[j] + bonus[j] * kv), [0])
                    T.buffer_store(column, column[j] * decay[j] + kv, [j])
                T.buffer_store(partial, acc[0], [token, part, i])

            def put_out(stage) -> None:
                def add(_, place) -> None:
                    token, j = place // size, place % size
                    t = T.bind(stage * tokens + token)
                    with T.If(t < length), T.Then():
                        total = partial[token, 0, j]
                        for other in range(1, parts):
                            total = total + partial[token, other, j]
                        T.buffer_store(out, total, [0, first + t, h * size + j])

                each(tokens * size, thread, threads, 1, add)

            for j in range(keys):
                key = part * keys + j
                T.buffer_store(column, state[slot, h, key, i], [j])
                T.buffer_store(decay, w[h, key], [j])
                T.buffer_store(bonus, u[h, key], [j])
            begin(0)
            with T.serial(0, (length + tokens - 1) // tokens) as stage:
                begin(stage + 1)
                call("async_wait", 1)
                barrier()
                with T.serial(0, T.min(T.int64(tokens), length - stage * tokens)) as token:
                    compute(stage, token)
                barrier()
                put_out(stage)
            for j in range(keys):
                T.buffer_store(out_state, column[j], [slot, h, part * keys + j, i])

        with T.thread_binding(0, batch * heads, thread="blockIdx.x") as bh:
            with T.thread_binding(0, threads, thread="threadIdx.x") as thread:
                scan(bh // heads, bh % heads, thread)

    return kernel

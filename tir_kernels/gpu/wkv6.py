"""wkv of RWKV-6, in float32: formulas and the layout of the state are those of ``cpu.wkv6``."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import prim_func
from ..recurrence import Phase, recurrence_args
from ..segments import sequence
from .heads import Keys, part_of_head, total, total_of
from .stages import COPIED, Stages, token_bytes, tokens_of_a_stage
from .threads import barrier, registers, shared


@lru_cache(None)
def wkv6(
    num_heads: int,
    head_size: int,
    phase: Phase = "prefill",
    in_place: bool = False,
    async_copies: bool = False,
) -> tirx.PrimFunc:
    """(r, k, v, w, u, state, segment_ends -> out, out_state), float32; arguments as in ``cpu.wkv6``. ``async_copies`` says that
    the device has them.

    Columns of the state do not depend on each other: a head's are spread over several blocks. The threads of a column share
    its keys; their sums wait in shared memory until the stage is done."""
    heads, size = num_heads, head_size
    columns, parts = part_of_head(size)
    threads, keys = columns * parts, size // parts
    copies = async_copies and phase == "prefill" and columns % COPIED == 0
    nbytes = token_bytes(3, size, copies) + token_bytes(1, columns, copies) + 4 * threads
    tokens = 1 if phase == "decode" else tokens_of_a_stage(nbytes, 0, copies)
    R, K, W = range(3)

    @prim_func
    def kernel():
        batch, (r, k, v, w), (u,), (state,), ends, slots, (out,), (out_state,) = recurrence_args(
            heads * size, "rkvw", {"u": (heads, size)}, {"state": (heads, size, size)}, phase, in_place
        )

        def scan(b, h, start, thread):
            """The columns of head h from ``start`` on."""
            slot, first, length = sequence(b, slots, ends)
            column, part = T.bind(thread // parts), T.bind(thread % parts)
            channel, mine = T.bind(h * size + start + column), Keys(size, part, parts)
            stages = Stages((batch, b), (heads * size, channel), first, length, tokens, thread, threads, copies)
            by_key = stages.staged((r, k, w), h * size, size)
            by_value = stages.staged((v,), h * size + start, columns)
            read = shared((tokens, columns, parts))
            s, bonus = registers((keys,)), registers((keys,))

            def compute(stage, token, _turn: int, _inside) -> None:
                """The thread's share of what is read of the state, and the state after one token."""

                def of(source: int) -> list:
                    return mine.of(lambda keys: by_key.held[by_key.at(stage, source, token, keys)])

                asked, key, decay = of(R), of(K), of(W)
                value = T.bind(by_value.held[by_value.at(stage, 0, token, column)])
                kv = [T.bind(key[j] * value) for j in range(keys)]
                share = total([asked[j] * (s[j] + bonus[j] * kv[j]) for j in range(keys)])
                T.buffer_store(read, share, [token, column, part])
                for j in range(keys):
                    T.buffer_store(s, s[j] * decay[j] + kv[j], [j])

            def put_out(token, i, row) -> None:
                T.buffer_store(out, total_of(read, token, i), [0, row, h * size + start + i])

            for j in range(keys):
                T.buffer_store(s, state[slot, h, mine[j], start + column], [j])
                T.buffer_store(bonus, u[h, mine[j]], [j])
            with stages.each() as stage:
                stages.each_token(stage, compute)
                barrier()
                stages.put_out(stage, columns, put_out)
            for j in range(keys):
                T.buffer_store(out_state, s[j], [slot, h, mine[j], start + column])

        blocks = size // columns
        with T.thread_binding(0, batch * heads * blocks, thread="blockIdx.x") as i:
            with T.thread_binding(0, threads, thread="threadIdx.x") as thread:
                scan(i // (heads * blocks), i // blocks % heads, i % blocks * columns, thread)

    return kernel

"""wkv of RWKV-5 times a second gate h: out[t, i] = h[t, i] * sum_k r[t, k] * (S[k, i] + u[k] * k[t, k] * v[t, i]).

The state is that of ``tir_kernels.cpu.wkv5``. Written for brevity: one number at a time.
"""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tir_kernels.builder import prim_func, root_block
from tir_kernels.recurrence import RecurrenceArgs, recurrence_args
from tir_kernels.segments import sequence


def _arguments(heads: int, size: int, phase: str, in_place: bool):
    vectors = dict.fromkeys("wu", (heads, size))
    inputs, states = ("r", "k", "v", "second"), {"state": (heads, size, size)}
    return recurrence_args(heads * size, inputs, vectors, states, phase, in_place)


def _column(args: RecurrenceArgs, b, head, i, size: int, acc) -> None:
    """Scan column i of a head."""
    _, (r, k, v, h), (w, u), (state,), ends, slots, (out,), (updated,) = args
    slot, first, length = sequence(b, slots, ends)
    if updated is not state:
        with T.serial(0, size) as key:
            T.buffer_store(updated, state[b, head, key, i], [b, head, key, i])
    with T.serial(0, length) as t:
        at, column = first + t, head * size + i
        T.buffer_store(acc, T.float32(0.0), [0])
        with T.serial(0, size) as key:
            s = T.bind(updated[slot, head, key, i])
            kv = T.bind(k[0, at, head * size + key] * v[0, at, column])
            T.buffer_store(acc, acc[0] + r[0, at, head * size + key] * (s + u[head, key] * kv), [0])
            T.buffer_store(updated, s * w[head, key] + kv, [slot, head, key, i])
        T.buffer_store(out, h[0, at, column] * acc[0], [0, at, column])


@lru_cache(None)
def doubled_on_cpu(heads: int, size: int, phase: str = "prefill", in_place: bool = False) -> tirx.PrimFunc:
    """(r, k, v, second, w, u, state, segment_ends, slots -> out), all but the last two float32."""

    @prim_func(own=("reads", "writes"))
    def kernel():
        args = _arguments(heads, size, phase, in_place)
        with root_block():
            with T.parallel(0, args.batch * heads) as bh:
                acc = T.alloc_buffer((1,), "float32", scope="global")
                with T.serial(0, size) as i:
                    _column(args, bh // heads, bh % heads, i, size, acc)

    return kernel


@lru_cache(None)
def doubled_on_gpu(heads: int, size: int, phase: str = "prefill", in_place: bool = False) -> tirx.PrimFunc:
    """The same with a thread for every column of a head."""

    @prim_func
    def kernel():
        args = _arguments(heads, size, phase, in_place)
        with T.thread_binding(0, args.batch * heads, thread="blockIdx.x") as bh:
            with T.thread_binding(0, size, thread="threadIdx.x") as i:
                acc = T.alloc_buffer((1,), "float32", scope="local")
                _column(args, bh // heads, bh % heads, i, size, acc)

    return kernel

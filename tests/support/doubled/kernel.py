"""wkv of RWKV-5 times a second gate h: out[t, i] = h[t, i] * sum_k r[t, k] * (S[k, i] + u[k] * k[t, k] * v[t, i]).

The state is that of ``tir_kernels.cpu.wkv5``. Written for brevity: one number at a time.
"""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tir_kernels.builder import arg, prim_func
from tir_kernels.builder import size as extent
from tir_kernels.segments import sequence


def _arguments(heads: int, size: int, phase: str, in_place: bool):
    batch, rows, slots_of_pool = extent("batch"), extent("rows"), extent("num_slots")
    rows = batch if phase == "decode" else rows
    r, k, v, h = (arg(name, (1, rows, heads * size)) for name in ("r", "k", "v", "second"))
    w, u = (arg(name, (heads, size)) for name in "wu")
    state = arg("state", (slots_of_pool if in_place else batch, heads, size, size))
    ends = arg("segment_ends", (batch,), "int32") if phase == "prefill" else None
    slots = arg("slots", (batch,), "int32") if in_place else None
    out = arg("out", (1, rows, heads * size))
    updated = state if in_place else arg("out_state", (batch, heads, size, size))
    return batch, (r, k, v, h, w, u), state, ends, slots, out, updated


def _column(inputs, state, ends, slots, out, updated, b, head, i, size: int, acc) -> None:
    """Scan column i of a head."""
    r, k, v, h, w, u = inputs
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
def wkv_doubled_on_cpu(heads: int, size: int, phase: str = "prefill", in_place: bool = False) -> tirx.PrimFunc:
    """(r, k, v, second, w, u, state, segment_ends, slots -> out), all but the last two float32."""

    @prim_func(own=("reads", "writes"))
    def kernel():
        batch, inputs, *rest = _arguments(heads, size, phase, in_place)
        with T.sblock("root"):
            T.reads()
            T.writes()
            with T.parallel(0, batch * heads) as bh:
                acc = T.alloc_buffer((1,), "float32", scope="global")
                with T.serial(0, size) as i:
                    _column(inputs, *rest, bh // heads, bh % heads, i, size, acc)

    return kernel


@lru_cache(None)
def wkv_doubled_on_gpu(heads: int, size: int, phase: str = "prefill", in_place: bool = False) -> tirx.PrimFunc:
    """The same with a thread for every column of a head."""

    @prim_func
    def kernel():
        batch, inputs, *rest = _arguments(heads, size, phase, in_place)
        with T.thread_binding(0, batch * heads, thread="blockIdx.x") as bh:
            with T.thread_binding(0, size, thread="threadIdx.x") as i:
                acc = T.alloc_buffer((1,), "float32", scope="local")
                _column(inputs, *rest, bh // heads, bh % heads, i, size, acc)

    return kernel

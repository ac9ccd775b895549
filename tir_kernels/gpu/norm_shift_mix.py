"""Layer norm, token shift and time mixes of one half block, fused: see ``cpu.norm_shift_mix``."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, prim_func, size, span
from ..norm import mixed, normalized
from ..recurrence import Phase
from ..segments import sequence
from .threads import THREADS, each, grid, narrow, registers, shared, statistics, vector_of


def sequence_of(t, segment_ends, batch):
    """The sequence that row t belongs to, its first and its last row; int64, inside a GPU kernel."""
    before = registers((1,), "int32")
    T.buffer_store(before, T.int32(0), [0])
    with T.serial(0, batch) as b:
        ended = segment_ends[b] <= T.cast(t, "int32")
        T.buffer_store(before, before[0] + T.Select(ended, T.int32(1), T.int32(0)), [0])
    b = T.bind(T.cast(T.max(before[0], T.int32(0)), "int64"))
    _, first, _ = sequence(b, None, segment_ends)
    return b, first, T.bind(T.cast(T.max(segment_ends[b], T.int32(1)) - 1, "int64"))


@lru_cache(None)
def norm_shift_mix(
    channels: int,
    num_mixes: int,
    epsilon: float,
    phase: Phase,
    dtype: str = "float32",
    parts: int = 1,
    in_place: bool = False,
    unmixed: int = 0,
) -> tirx.PrimFunc:
    """(x, weight, bias, mix_0 .. mix_{n-1}, state, segment_ends -> out of ``dtype``, out_state); ``segment_ends``, ``phase``
    and ``in_place``, with which ``slots`` follow segment_ends, as in ``wkv5``, the others as in ``cpu.norm_shift_mix``.

    A block of threads runs a row and each of ``parts`` equal parts of its channels. The block of a sequence's first row reads
    that sequence's state and then writes it, from the last row, so that no other block may come between."""
    extent = channels // parts
    width = vector_of("float32", extent)

    @prim_func
    def kernel():
        batch, rows, num_slots = size("batch"), size("rows"), size("num_slots")
        if phase == "decode":
            rows = batch
        x = arg("x", (1, rows, channels))
        weight, bias = arg("weight", (channels,)), arg("bias", (channels,))
        mixes = [arg(f"mix_{j}", (1, 1, channels)) for j in range(num_mixes)]
        state = arg("state", (num_slots if in_place else batch, channels))
        ends = arg("segment_ends", (batch,), "int32") if phase == "prefill" else None
        slots = arg("slots", (batch,), "int32") if in_place else None
        out = arg("out", (num_mixes + unmixed, rows, channels), dtype)
        out_state = state if in_place else arg("out_state", (batch, channels))

        def slot_of(b):
            return T.bind(T.cast(slots[b], "int64")) if in_place else b

        def row(t):
            return lambda c: x[0, t, span(c, width)]

        with grid(rows, parts) as (t, part, thread):
            if phase == "decode":
                starts, slot = None, slot_of(t)
            else:
                b, first, last = sequence_of(t, ends, batch)
                starts, slot = T.bind(t == first), slot_of(b)
                beside = T.bind(T.Select(starts, last, t - 1))
            loads = [row(t)] if starts is None else [row(t), row(beside)]
            scratch = shared((len(loads), THREADS))
            found = statistics(loads, channels, thread, THREADS, width, epsilon, scratch)

            current, before = registers((width,)), registers((width,))
            lanes = span(0, width)

            def normed(j: int, first, at):
                mean, scale = found[j]
                return normalized(loads[j](first), mean, scale, weight[at], bias[at], width)

            def write(_, c):
                first = T.bind(part * extent + c)
                at = span(first, width)
                T.buffer_store(current, normed(0, first, at), [lanes])
                if starts is None:
                    T.buffer_store(before, state[slot, at], [lanes])
                    T.buffer_store(out_state, current[lanes], [slot, at])
                else:
                    T.buffer_store(before, normed(1, first, at), [lanes])
                    with T.If(starts), T.Then():
                        last_row = T.bind(before[lanes])
                        T.buffer_store(before, state[slot, at], [lanes])
                        T.buffer_store(out_state, last_row, [slot, at])
                for j, mu in enumerate(mixes):
                    value = mixed(current[lanes], before[lanes], T.bind(mu[0, 0, at]), width)
                    T.buffer_store(out, narrow(value, dtype, width), [j, t, at])
                for j, held in enumerate((current, before)[:unmixed]):
                    T.buffer_store(out, narrow(T.bind(held[lanes]), dtype, width), [num_mixes + j, t, at])

            each(extent, thread, THREADS, width, write)

    return kernel

"""Layer norm, token shift and time mixes of one block half, fused (the mu-weighted interpolation of both papers)."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .builder import arg, prim_func, registers, size
from .layer_norm import mean_and_scale
from .segments import sequence_of
from .simd import constant, span, splat, vector_width
from .threads import THREADS, each, grid, narrow, shared, statistics, vector_of


@lru_cache(None)
def norm_shift_mix(channels: int, num_mixes: int, epsilon: float) -> tirx.PrimFunc:
    """(x, weight, bias, mix_0 .. mix_{n-1}, state, first_slots, last_slots -> out), float32; CPU form.

    x [1, T, C], weight and bias [C], every mix [1, 1, C], out [n, T, C]. With y = layer_norm(x), row t of out[j] is
    y[t] * mix_j + y[t - 1] * (1 - mix_j); where first_slots[t] >= 0 a sequence begins and state[first_slots[t]] takes the
    place of y[t - 1]; where last_slots[t] >= 0 it ends and state[last_slots[t]] becomes y[t]: state [S, C] is updated in
    place. Both slot arrays are int32 [T].
    """
    width = vector_width(channels)

    @prim_func
    def kernel():
        rows, num_slots = T.int64(), T.int64()
        x = arg("x", (1, rows, channels))
        weight, bias = arg("weight", (channels,)), arg("bias", (channels,))
        mixes = [arg(f"mix_{j}", (1, 1, channels)) for j in range(num_mixes)]
        state = arg("state", (num_slots, channels))
        first_slots, last_slots = arg("first_slots", (rows,), "int32"), arg("last_slots", (rows,), "int32")
        out = arg("out", (num_mixes, rows, channels))

        def statistics(t):
            return mean_and_scale(lambda i: x[0, t, span(i, width)], channels, width, epsilon)

        def normed(t, at, mean, scale):
            return (x[0, t, at] - splat(mean, width)) * splat(scale, width) * weight[at] + bias[at]

        def mix(t, previous):
            mean, scale = statistics(t)
            with T.serial(0, channels // width) as i:
                at = span(i * width, width)
                y, before = T.bind(normed(t, at, mean, scale)), T.bind(previous(at))
                for j, mu in enumerate(mixes):
                    m = mu[0, 0, at]
                    T.buffer_store(out, y * m + before * (constant(1.0, width) - m), [j, t, at])

        with T.sblock("root"):
            T.reads()
            T.writes()
            with T.parallel(0, rows) as t:
                slot = T.bind(T.cast(first_slots[t], "int64"))
                with T.If(slot >= 0):
                    with T.Then():
                        mix(t, lambda at: state[slot, at])
                    with T.Else():
                        mean, scale = statistics(t - 1)
                        mix(t, lambda at: normed(t - 1, at, mean, scale))
            with T.serial(0, rows) as t:
                slot = T.bind(T.cast(last_slots[t], "int64"))
                with T.If(slot >= 0):
                    with T.Then():
                        mean, scale = statistics(t)
                        with T.serial(0, channels // width) as i:
                            at = span(i * width, width)
                            T.buffer_store(state, normed(t, at, mean, scale), [slot, at])

    return kernel


@lru_cache(None)
def norm_shift_mix_token(channels: int, num_mixes: int, epsilon: float, parts: int) -> tirx.PrimFunc:
    """(x, weight, bias, mix_0 .. mix_{n-1}, state, slots -> out): ``norm_shift_mix`` for one token of one sequence.

    x [1, 1, C], out [n, 1, C], slots int32 [1]. ``parts``, a divisor of C, run in parallel; every thread computes the
    statistics of the whole row by itself."""
    extent = channels // parts
    width = vector_width(extent)

    @prim_func(own=("writes",), replicated=True)
    def kernel():
        num_slots = T.int64()
        x = arg("x", (1, 1, channels))
        weight, bias = arg("weight", (channels,)), arg("bias", (channels,))
        mixes = [arg(f"mix_{j}", (1, 1, channels)) for j in range(num_mixes)]
        state = arg("state", (num_slots, channels))
        slots = arg("slots", (1,), "int32")
        out = arg("out", (num_mixes, 1, channels))
        with T.sblock("root"):
            T.reads()
            T.writes()
            wide = vector_width(channels)
            mean, scale = mean_and_scale(lambda i: x[0, 0, span(i, wide)], channels, wide, epsilon, unrolled=True)
            slot = T.bind(T.cast(slots[0], "int64"))
            with T.parallel(0, parts) as part, T.serial(0, extent // width) as i:
                at = span(part * extent + i * width, width)
                y = T.bind((x[0, 0, at] - splat(mean, width)) * splat(scale, width) * weight[at] + bias[at])
                before = T.bind(state[slot, at])
                for j, mu in enumerate(mixes):
                    m = mu[0, 0, at]
                    T.buffer_store(out, y * m + before * (constant(1.0, width) - m), [j, 0, at])
                T.buffer_store(state, y, [slot, at])

    return kernel


@lru_cache(None)
def norm_shift_mix_gpu(
    channels: int,
    num_mixes: int,
    epsilon: float,
    phase: Literal["prefill", "decode"],
    dtype: str = "float32",
    parts: int = 1,
) -> tirx.PrimFunc:
    """(x, weight, bias, mix_0 .. mix_{n-1}, state, segment_ends, slots -> out of ``dtype``); ``segment_ends`` and ``slots``
    as in ``wkv5``, the others as in ``norm_shift_mix``.

    A block of threads a row and each of ``parts`` equal parts of its channels. The block of a sequence's first row reads
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
        state = arg("state", (num_slots, channels))
        ends = arg("segment_ends", (batch,), "int32") if phase == "prefill" else None
        slots = arg("slots", (batch,), "int32")
        out = arg("out", (num_mixes, rows, channels), dtype)

        def row(t):
            return lambda c: x[0, t, span(c, width)]

        with grid(rows, parts) as (t, part, thread):
            if phase == "decode":
                starts, slot = None, T.bind(T.cast(slots[t], "int64"))
            else:
                b, first, last = sequence_of(t, ends, batch)
                starts, slot = T.bind(t == first), T.bind(T.cast(slots[b], "int64"))
                beside = T.bind(T.Select(starts, last, t - 1))
            loads = [row(t)] if starts is None else [row(t), row(beside)]
            scratch = shared((len(loads), THREADS))
            found = statistics(loads, channels, thread, THREADS, width, epsilon, scratch)

            current, before = registers((width,), device="gpu"), registers((width,), device="gpu")
            lanes = span(0, width)

            def normed(j: int, first, at):
                mean, scale = found[j]
                return (loads[j](first) - splat(mean, width)) * splat(scale, width) * weight[at] + bias[at]

            def write(_, c):
                first = T.bind(part * extent + c)
                at = span(first, width)
                T.buffer_store(current, normed(0, first, at), [lanes])
                if starts is None:
                    T.buffer_store(before, state[slot, at], [lanes])
                    T.buffer_store(state, current[lanes], [slot, at])
                else:
                    T.buffer_store(before, normed(1, first, at), [lanes])
                    with T.If(starts), T.Then():
                        last_row = T.bind(before[lanes])
                        T.buffer_store(before, state[slot, at], [lanes])
                        T.buffer_store(state, last_row, [slot, at])
                for j, mu in enumerate(mixes):
                    m = T.bind(mu[0, 0, at])
                    mixed = current[lanes] * m + before[lanes] * (constant(1.0, width) - m)
                    T.buffer_store(out, narrow(mixed, dtype, width), [j, t, at])

            each(extent, thread, THREADS, width, write)

    return kernel

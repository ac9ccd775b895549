"""wkv of RWKV-4, in float32: formulas and the layout of the state are those of ``cpu.wkv4``."""

from __future__ import annotations

import math
from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import prim_func
from ..recurrence import Phase, recurrence_args
from ..segments import sequence
from ..weighted_average import with_term
from .threads import THREADS, narrow, registers


@lru_cache(None)
def wkv4(
    channels: int,
    phase: Phase = "prefill",
    in_place: bool = False,
    dtype: str = "float32",
) -> tirx.PrimFunc:
    """(r, k, v, w, u, state_a, state_b, state_p, segment_ends -> out of ``dtype``, out_a, out_b, out_p); shapes and the other
    arguments as in ``cpu.wkv4``. A thread runs a channel of a sequence."""
    threads = math.gcd(channels, THREADS)

    @prim_func(own=("reads", "writes"))
    def kernel():
        states = {f"state_{name}": (channels,) for name in "abp"}
        batch, (r, k, v), (w, u), state, ends, slots, (out,), out_state = recurrence_args(
            channels, "rkv", dict.fromkeys("wu", (channels,)), states, phase, in_place, dtype
        )

        def power(x):
            return T.bind(T.exp(x))

        def scan(b, c):
            """Run channel c of sequence b."""
            slot, first, length = sequence(b, slots, ends)
            local = registers((3,))
            for i, source in enumerate(state):
                T.buffer_store(local, source[slot, c], [i])
            with T.serial(0, length) as t, T.sblock("wkv"):
                vb, vt = T.axis.spatial(batch, b), T.axis.reduce(length, t)
                vc = T.axis.spatial(channels, c)
                T.reads()
                T.writes()
                row = (first if ends is not None else vb) + vt
                a, b_, p = (T.bind(local[i]) for i in range(3))
                key, value = T.bind(k[0, row, vc]), T.bind(v[0, row, vc])
                current = T.bind(u[vc] + key)
                numerator, denominator, _ = with_term((a, b_, p), current, value, power)
                T.buffer_store(out, narrow(r[0, row, vc] * (numerator / denominator), dtype), [0, row, vc])
                decayed = T.bind(p + w[vc])
                for i, updated in enumerate(with_term((a, b_, decayed), key, value, power)):
                    T.buffer_store(local, updated, [i])
            for i, target in enumerate(out_state):
                T.buffer_store(target, local[i], [slot, c])

        with T.thread_binding(0, batch * (channels // threads), thread="blockIdx.x") as i:
            with T.thread_binding(0, threads, thread="threadIdx.x") as j:
                scan(i // (channels // threads), i % (channels // threads) * threads + j)

    return kernel

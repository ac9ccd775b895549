"""wkv of RWKV-4, in float32 ("RWKV: Reinventing RNNs for the Transformer Era", section 3 and appendix; ChatRWKV
``model.py`` att_seq).

For every channel, with numerator a and denominator b both scaled by exp(-p):

    out[t]  = r[t] * (e^p a + e^(u + k[t]) v[t]) / (e^p b + e^(u + k[t]))
    a, b    = e^w a + e^k[t] v[t], e^w b + e^k[t]

**Layout of the state**: three tensors a, b, p, each [B, C]; p starts at -1e30. T is a reduction over them: see ``wkv5``.
"""

from __future__ import annotations

import math
from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import prim_func, span
from ..recurrence import Phase, recurrence_args
from ..segments import sequence
from ..weighted_average import with_term
from .simd import exp, registers, vector_width

CHAINS = 4  # vectors in flight: a channel's recurrence is one long dependency chain


def wkv4_channels(channels: int) -> int:
    """Channels that are kept in registers together; the parallel loop runs over blocks of so many."""
    width = vector_width(channels)
    return width * math.gcd(CHAINS, channels // width)


@lru_cache(None)
def wkv4(channels: int, phase: Phase = "prefill", in_place: bool = False) -> tirx.PrimFunc:
    """(r, k, v, w, u, state_a, state_b, state_p, segment_ends -> out, out_a, out_b, out_p), float32.

    r (already through its sigmoid), k, v, out: [1, T, C], the tokens of all sequences one after the other; w = -exp(decay)
    and u: [C]; every state: [B, C]. ``segment_ends``, ``slots`` and ``in_place`` as in ``wkv5``.
    """
    width, block = vector_width(channels), wkv4_channels(channels)
    chains = block // width

    @prim_func(own=("reads", "writes"))
    def kernel():
        states = {f"state_{name}": (channels,) for name in "abp"}
        batch, (r, k, v), (w, u), state, ends, slots, (out,), out_state = recurrence_args(
            channels, "rkv", dict.fromkeys("wu", (channels,)), states, phase, in_place
        )

        def power(x):
            return exp(x, width)

        def scan(b, c):
            """Run channels c to c + block of sequence b."""
            slot, first, length = sequence(b, slots, ends)
            local = registers((3, chains, width))
            lanes = span(0, width)
            for i, source in enumerate(state):
                for j in range(chains):
                    T.buffer_store(local, source[slot, span(c + j * width, width)], [i, j, lanes])
            with T.serial(0, length) as t:
                for j in range(chains):
                    with T.sblock(f"wkv_{j}"):
                        vb, vt = T.axis.spatial(batch, b), T.axis.reduce(length, t)
                        vc = T.axis.spatial(channels, c + j * width)
                        T.reads()
                        T.writes()
                        row, channel = (first if ends is not None else vb) + vt, span(vc, width)
                        a, b_, p = (T.bind(local[i, j, lanes]) for i in range(3))
                        key, value = T.bind(k[0, row, channel]), T.bind(v[0, row, channel])
                        current = T.bind(u[channel] + key)
                        numerator, denominator, _ = with_term((a, b_, p), current, value, power)
                        T.buffer_store(out, r[0, row, channel] * (numerator / denominator), [0, row, channel])
                        decayed = T.bind(p + w[channel])
                        for i, updated in enumerate(with_term((a, b_, decayed), key, value, power)):
                            T.buffer_store(local, updated, [i, j, lanes])
            for i, target in enumerate(out_state):
                for j in range(chains):
                    T.buffer_store(target, local[i, j, lanes], [slot, span(c + j * width, width)])

        blocks = channels // block
        with T.parallel(0, batch * blocks) as i:
            scan(i // blocks, i % blocks * block)

    return kernel

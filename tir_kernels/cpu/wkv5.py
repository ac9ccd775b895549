"""wkv of RWKV-5, in float32 ("Eagle and Finch", section 4.2; ChatRWKV ``model.py`` att_seq_v5).

For a sequence b and head h, with r, k, w, u indexed by key and v by value:

    out[t, i] = sum_k r[t, k] * (S[k, i] + u[k] * k[t, k] * v[t, i])
    S[k, i]   = w[k] * S[k, i] + k[t, k] * v[t, i]

**Layout of the state**: [B, H, N, N] as S[b, h, k, i], key before value, as ChatRWKV keeps it: the value axis is
contiguous, so that a CPU's vector lanes and a GPU's threads both run along it.

T is a reduction over the state. The block's axes (b, t, h, i, k) are "SRSSR": declared spatial, t could be run in
parallel by a schedule, which gives wrong values without any error.
"""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import constant, prim_func, span, splat
from ..recurrence import Phase, recurrence_args
from ..segments import sequence
from .simd import registers, vector_width


@lru_cache(None)
def wkv5(
    num_heads: int,
    head_size: int,
    phase: Phase = "prefill",
    in_place: bool = False,
) -> tirx.PrimFunc:
    """(r, k, v, w, u, state, segment_ends -> out, out_state), float32.

    r, k, v, out: [1, T, H * N], the tokens of all sequences one after the other; w, u: [H, N]; state, out_state:
    [B, H, N, N]. Sequence b covers rows segment_ends[b - 1] to segment_ends[b]; ``segment_ends`` is int32 [B] and absent
    in the ``decode`` phase, where row b is the one token of sequence b.

    With ``in_place``, state is [S, H, N, N], int32 [B] ``slots`` follow segment_ends, sequence b updates state[slots[b]],
    and there is no out_state. Otherwise no input changes.
    """
    heads, size = num_heads, head_size
    width = vector_width(size)

    @prim_func(own=("reads", "writes"))
    def kernel():
        batch, (r, k, v), (w, u), (state,), ends, slots, (out,), (out_state,) = recurrence_args(
            heads * size, "rkv", dict.fromkeys("wu", (heads, size)), {"state": (heads, size, size)}, phase, in_place
        )

        def scan(b, h):
            slot, first, length = sequence(b, slots, ends)
            if not in_place:
                with T.serial(0, size) as key:
                    for i in range(0, size, width):
                        T.buffer_store(out_state, state[b, h, key, span(i, width)], [b, h, key, span(i, width)])
            acc = registers((size // width, width))
            with T.serial(0, length) as t:
                for i in range(size // width):
                    T.buffer_store(acc, constant(0.0, width), [i, span(0, width)])
                with T.serial(0, size) as key:
                    for i in range(size // width):
                        with T.sblock(f"wkv_{i}"):
                            vb, vt = T.axis.spatial(batch, b), T.axis.reduce(length, t)
                            vh, vi = T.axis.spatial(heads, h), T.axis.spatial(size // width, i)
                            vk = T.axis.reduce(size, key)
                            T.reads()
                            T.writes()
                            at, lanes = first + vt, [vi, span(0, width)]
                            where = [slot if in_place else vb, vh, vk, span(vi * width, width)]
                            s = T.bind(out_state[tuple(where)])
                            value = v[0, at, span(vh * size + vi * width, width)]
                            kv = T.bind(splat(k[0, at, vh * size + vk], width) * value)
                            read = splat(r[0, at, vh * size + vk], width) * (s + splat(u[vh, vk], width) * kv)
                            T.buffer_store(acc, acc[tuple(lanes)] + read, lanes)
                            T.buffer_store(out_state, s * splat(w[vh, vk], width) + kv, where)
                for i in range(size // width):
                    T.buffer_store(out, acc[i, span(0, width)], [0, first + t, span(h * size + i * width, width)])

        with T.parallel(0, batch * heads) as bh:
            scan(bh // heads, bh % heads)

    return kernel

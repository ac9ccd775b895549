"""wkv of RWKV-7, in float32 ("RWKV-7 Goose", section 4.1; ChatRWKV ``model.py`` RWKV_x070_TMix_seq).

For a sequence b and head h, with all but v indexed by key and v by value:

    kk        = k * k_k / max(|k * k_k|, 1e-12)                    the removal key, of length 1
    k', v'    = k * (1 + (a - 1) * k_a), v + (v_first - v) * nu    the replacement key, and the value
    S[i, j]   = S[i, j] * w[j] - (sum_l S[i, l] * kk[l]) * a[j] * kk[j] + v'[i] * k'[j]
    out[i]    = sum_j S[i, j] * r[j]                               the state is read after its update
    bonus[i]  = (sum_j r[j] * k'[j] * r_k[j]) * v'[i]              what is added after the group norm

**Layout of the state**: [B, H, N, N] as S[b, h, i, j], value before key, as ChatRWKV keeps that of RWKV-7. A row, which is
a value's, needs no other row: vector lanes run along the keys, and rows may be shared out among a GPU's blocks.

w (decay), a (rate) and nu (how much of the first layer's value takes the place of the layer's own) are between 0 and 1. In
the first layer v_first is v, and nu may be any number.

T is a reduction over the state: the axes (b, t, h, i) of the block that updates a row are "SRSS".
"""

from __future__ import annotations

from functools import lru_cache, partial

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import constant, prim_func, span, splat
from ..recurrence import Phase, recurrence_args
from ..segments import sequence
from .simd import reduce_add, registers, vector_width

INPUTS = ("r", "w", "k", "v", "a", "v_first", "nu")
VECTORS = ("k_k", "k_a", "r_k")
SHORTEST = 1e-12  # of a removal key before it is divided by its length, as in PyTorch's normalize


@lru_cache(None)
def wkv7(
    num_heads: int,
    head_size: int,
    phase: Phase = "prefill",
    in_place: bool = False,
) -> tirx.PrimFunc:
    """(r, w, k, v, a, v_first, nu, k_k, k_a, r_k, state, segment_ends -> out, bonus, out_state), float32.

    r, w, k, v, a, v_first, nu, out, bonus: [1, T, H * N], the tokens of all sequences one after the other; k_k, k_a, r_k:
    [H, N]; state, out_state: [B, H, N, N]. Sequence b covers rows segment_ends[b - 1] to segment_ends[b]; ``segment_ends`` is
    int32 [B] and absent in the ``decode`` phase, where row b is the one token of sequence b.

    With ``in_place``, state is [S, H, N, N], int32 [B] ``slots`` follow segment_ends, sequence b updates state[slots[b]],
    and there is no out_state. Otherwise no input changes.
    """
    heads, size = num_heads, head_size
    width = vector_width(size)
    parts = size // width

    @prim_func(own=("reads", "writes"))
    def kernel():
        vectors, states = dict.fromkeys(VECTORS, (heads, size)), {"state": (heads, size, size)}
        batch, inputs, (k_k, k_a, r_k), (state,), ends, slots, (out, bonus), (out_state,) = recurrence_args(
            heads * size, INPUTS, vectors, states, phase, in_place, outputs=("out", "bonus")
        )
        r, w, k, v, a, v_first, nu = inputs
        lanes = span(0, width)

        def scan(b, h):
            slot, first, length = sequence(b, slots, ends)
            if not in_place:
                with T.serial(0, size) as row:
                    for j in range(0, size, width):
                        T.buffer_store(out_state, state[b, h, row, span(j, width)], [b, h, row, span(j, width)])
            # Of a token's keys: the removal key, what it puts in the place of what it removes, and the replacement key.
            removal, rate, key = (registers((parts, width)) for _ in range(3))
            value = registers((size,))
            sums = registers((2, width))
            with T.serial(0, length) as t:
                at = first + t

                def of_head(source, j, at=at, h=h):
                    return source[0, at, span(h * size + j * width, width)]

                for i in range(2):
                    T.buffer_store(sums, constant(0.0, width), [i, lanes])
                for j in range(parts):
                    own = span(j * width, width)
                    given, in_head = T.bind(of_head(k, j)), T.bind(of_head(a, j))
                    kk = T.bind(given * k_k[h, own])
                    new = T.bind(given * (constant(1.0, width) + (in_head - constant(1.0, width)) * k_a[h, own]))
                    T.buffer_store(removal, kk, [j, lanes])
                    T.buffer_store(key, new, [j, lanes])
                    T.buffer_store(sums, sums[0, lanes] + kk * kk, [0, lanes])
                    T.buffer_store(sums, sums[1, lanes] + of_head(r, j) * new * r_k[h, own], [1, lanes])
                norm = T.sqrt(reduce_add(sums[0, lanes], width))
                scale = T.bind(T.float32(1.0) / T.max(norm, T.float32(SHORTEST)))
                own_share = T.bind(reduce_add(sums[1, lanes], width))
                for j in range(parts):
                    kk = T.bind(removal[j, lanes] * splat(scale, width))
                    T.buffer_store(removal, kk, [j, lanes])
                    T.buffer_store(rate, kk * of_head(a, j), [j, lanes])
                    here, begin = T.bind(of_head(v, j)), of_head(v_first, j)
                    mixed = T.bind(here + (begin - here) * of_head(nu, j))
                    T.buffer_store(value, mixed, [span(j * width, width)])
                    T.buffer_store(bonus, mixed * splat(own_share, width), [0, at, span(h * size + j * width, width)])
                with T.serial(0, size) as row, T.sblock("wkv"):
                    vb, vt = T.axis.spatial(batch, b), T.axis.reduce(length, t)
                    vh, vi = T.axis.spatial(heads, h), T.axis.spatial(size, row)
                    T.reads()
                    T.writes()
                    where, of_row = slot if in_place else vb, partial(of_head, at=first + vt, h=vh)
                    s = [T.bind(out_state[where, vh, vi, span(j * width, width)]) for j in range(parts)]
                    found = constant(0.0, width)
                    for j in range(parts):
                        found = T.bind(found + s[j] * removal[j, lanes])
                    removed = T.bind(splat(reduce_add(found, width), width))
                    put = T.bind(splat(value[vi], width))
                    read = constant(0.0, width)
                    for j in range(parts):
                        decayed = s[j] * of_row(w, j) - removed * rate[j, lanes]
                        new = T.bind(decayed + put * key[j, lanes])
                        T.buffer_store(out_state, new, [where, vh, vi, span(j * width, width)])
                        read = T.bind(read + new * of_row(r, j))
                    T.buffer_store(out, reduce_add(read, width), [0, first + vt, vh * size + vi])

        with T.parallel(0, batch * heads) as bh:
            scan(bh // heads, bh % heads)

    return kernel

"""``norm_shift_mix`` for the one token of one sequence, in parallel over channels."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, prim_func, root_block, span
from ..norm import mixed, normalized
from ..segments import sequence
from .layer_norm import mean_and_scale
from .simd import vector_width


@lru_cache(None)
def norm_shift_mix_token(
    channels: int, num_mixes: int, epsilon: float, parts: int, in_place: bool = False, unmixed: int = 0
) -> tirx.PrimFunc:
    """(x, weight, bias, mix_0 .. mix_{n-1}, state -> out, out_state): ``norm_shift_mix`` for one token of one sequence.

    x [1, 1, C], out [n + unmixed, 1, C], state and out_state [1, C]. ``parts``, a divisor of C, run in parallel; every
    thread computes the statistics of the whole row by itself.

    With ``in_place``, state is [S, C], int32 [1] ``slots`` follows it, and state[slots[0]] is updated."""
    extent = channels // parts
    width = vector_width(extent)

    @prim_func(own=("writes",), replicated=True)
    def kernel():
        num_slots = T.int64() if in_place else 1
        x = arg("x", (1, 1, channels))
        weight, bias = arg("weight", (channels,)), arg("bias", (channels,))
        mixes = [arg(f"mix_{j}", (1, 1, channels)) for j in range(num_mixes)]
        state = arg("state", (num_slots, channels))
        slots = arg("slots", (1,), "int32") if in_place else None
        out = arg("out", (num_mixes + unmixed, 1, channels))
        out_state = state if in_place else arg("out_state", (1, channels))
        with root_block():
            wide = vector_width(channels)
            mean, scale = mean_and_scale(lambda i: x[0, 0, span(i, wide)], channels, wide, epsilon, unrolled=True)
            slot, _, _ = sequence(0, slots, None)
            with T.parallel(0, parts) as part, T.serial(0, extent // width) as i:
                at = span(part * extent + i * width, width)
                y = T.bind(normalized(x[0, 0, at], mean, scale, weight[at], bias[at], width))
                before = T.bind(state[slot, at])
                for j, mu in enumerate(mixes):
                    T.buffer_store(out, mixed(y, before, mu[0, 0, at], width), [j, 0, at])
                for j, value in enumerate((y, before)[:unmixed]):
                    T.buffer_store(out, value, [num_mixes + j, 0, at])
                T.buffer_store(out_state, y, [slot, at])

    return kernel

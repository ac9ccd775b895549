"""Layer norm, token shift and time mixes of one half block, fused (the mu-weighted interpolation of both papers)."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, prim_func, root_block, span
from ..norm import mixed, normalized
from .layer_norm import mean_and_scale
from .simd import vector_width


@lru_cache(None)
def norm_shift_mix(
    channels: int, num_mixes: int, epsilon: float, in_place: bool = False, unmixed: int = 0
) -> tirx.PrimFunc:
    """(x, weight, bias, mix_0 .. mix_{n-1}, state, first, last -> out, out_state), float32.

    x [1, T, C], weight and bias [C], every mix [1, 1, C], out [n + unmixed, T, C], state and out_state [B, C]. With
    y = layer_norm(x), row t of out[j] is y[t] * mix_j + y[t - 1] * (1 - mix_j), and those of the ``unmixed`` planes, up to two
    of them, are y[t] and y[t - 1]; where first[t] >= 0 a sequence begins and state[first[t]] takes
    the place of y[t - 1]; where last[t] >= 0 it ends and out_state[last[t]] becomes y[t]. ``first`` and ``last`` are int32
    [T], what ``border_slots`` gives.

    With ``in_place``, state is [S, C], out_state is state, and there is no further output.
    """
    width = vector_width(channels)

    @prim_func
    def kernel():
        rows, slots = T.int64(), T.int64()
        x = arg("x", (1, rows, channels))
        weight, bias = arg("weight", (channels,)), arg("bias", (channels,))
        mixes = [arg(f"mix_{j}", (1, 1, channels)) for j in range(num_mixes)]
        state = arg("state", (slots, channels))
        first_slots, last_slots = arg("first_slots", (rows,), "int32"), arg("last_slots", (rows,), "int32")
        out = arg("out", (num_mixes + unmixed, rows, channels))
        out_state = state if in_place else arg("out_state", (slots, channels))

        def statistics(t):
            return mean_and_scale(lambda i: x[0, t, span(i, width)], channels, width, epsilon)

        def normed(t, at, mean, scale):
            return normalized(x[0, t, at], mean, scale, weight[at], bias[at], width)

        def mix(t, previous):
            mean, scale = statistics(t)
            with T.serial(0, channels // width) as i:
                at = span(i * width, width)
                y, before = T.bind(normed(t, at, mean, scale)), T.bind(previous(at))
                for j, mu in enumerate(mixes):
                    T.buffer_store(out, mixed(y, before, mu[0, 0, at], width), [j, t, at])
                for j, value in enumerate((y, before)[:unmixed]):
                    T.buffer_store(out, value, [num_mixes + j, t, at])

        with root_block():
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
                with T.If(slot >= 0), T.Then():
                    mean, scale = statistics(t)
                    with T.serial(0, channels // width) as i:
                        at = span(i * width, width)
                        T.buffer_store(out_state, normed(t, at, mean, scale), [slot, at])

    return kernel

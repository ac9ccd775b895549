"""Group norm over the heads of each row, and what follows it, in float32 ("Eagle and Finch", section 4.2)."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, prim_func, root_block, span
from ..norm import normalized
from .layer_norm import mean_and_scale
from .simd import vector_width


@lru_cache(None)
def group_norm(num_groups: int, group_size: int, epsilon: float, gated: bool, added: bool = False) -> tirx.PrimFunc:
    """(x, weight, bias[, added][, gate] -> out), float32.

    x, added, gate, out [1, T, C]; weight, bias [C]; C = num_groups * group_size. Each group of each row is normalized by
    itself; ``added`` is added to the result, and ``gate`` (after its activation) multiplies it."""
    width = vector_width(group_size)
    channels = num_groups * group_size

    @prim_func(own=("reads", "writes"))
    def kernel():
        rows = T.int64()
        x = arg("x", (1, rows, channels))
        weight, bias = arg("weight", (channels,)), arg("bias", (channels,))
        bonus = arg("added", (1, rows, channels)) if added else None
        gate = arg("gate", (1, rows, channels)) if gated else None
        out = arg("out", (1, rows, channels))
        with root_block(), T.parallel(0, rows * num_groups) as i:
            t, start = i // num_groups, i % num_groups * group_size
            mean, scale = mean_and_scale(lambda j: x[0, t, span(start + j, width)], group_size, width, epsilon)
            for j in range(0, group_size, width):
                at = span(start + j, width)
                value = normalized(x[0, t, at], mean, scale, weight[at], bias[at], width)
                value = value + bonus[0, t, at] if added else value
                T.buffer_store(out, value * gate[0, t, at] if gated else value, [0, t, at])

    return kernel

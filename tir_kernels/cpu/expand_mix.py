"""Mixes of every token and channel from the hidden values of a low-rank pair, and what they mix ("Eagle and Finch", equations
16 to 18)."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, prim_func, root_block
from .blocks import load_block, store_block
from .packed import PackedFloat
from .simd import LANES
from .thin import each_token_tile


@lru_cache(None)
def expand_mix(
    targets: int, channels: int, rank: int, form: PackedFloat, tokens: int, planes: int, now: int
) -> tirx.PrimFunc:
    """(h, weight, mix_0 .. mix_{n-1}, x -> out), float32 but for the weight.

    h [1, T, n * R]; weight [n * Cp, R] as ``packed`` says, where the rows of each of the n targets begin at a multiple Cp of
    16; mixes [1, 1, C]; x [planes, T, C], whose planes ``now`` and ``now`` + 1 are y and the row before it; out [n, T, C] =
    y + (before - y) * (mix_j + W_j h_j). ``tokens`` share a load of the weights."""
    blocks = -(-channels // LANES)

    @prim_func
    def kernel():
        rows = T.int64()
        h = arg("h", (1, rows, targets * rank))
        (weight,) = form.args("w", targets * blocks * LANES, rank)
        mixes = [arg(f"mix_{j}", (1, 1, channels)) for j in range(targets)]
        x = arg("x", (planes, rows, channels))
        out = arg("out", (targets, rows, channels))

        def emit(j: int, block) -> None:
            start = T.bind(load_block(mixes[j], 0, block, channels))

            def finish(t, y):
                current = T.bind(load_block(x, t, block, channels, now))
                change = load_block(x, t, block, channels, now + 1) - current
                store_block(out, current + change * (start + y), t, block, channels, j)

            def value(k):
                return form.value(weight, j * blocks + block, k)

            each_token_tile(h, j * rank, rank, value, tokens, finish)

        with root_block(), T.parallel(0, blocks) as block:
            for j in range(targets):
                emit(j, block)

    return kernel

"""Mixes of every token and channel from the hidden values of a low-rank pair, and what they mix: see ``cpu.expand_mix``."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, cast, prim_func, size
from ..rows import RowFloat
from .thin import LANES, ROWS, add_products, of_lane
from .threads import THREADS, choose, grid, narrow, registers, shared, totals


@lru_cache(None)
def expand_mix(
    targets: int,
    channels: int,
    rank: int,
    form: RowFloat,
    tokens: int,
    planes: int,
    now: int,
    padded: int,
    dtype: str = "float32",
    float16_lanes: int = 4,
) -> tirx.PrimFunc:
    """(h, weight, mix_0 .. mix_{n-1}, x -> out); shapes as in ``cpu.expand_mix``.

    The weight is [n * ``padded``, R] as ``rows`` says; x and out are in ``dtype``, h and the mixes float32. ``tokens``, at most
    ``LANES``, share a load of the weights; ``float16_lanes`` is how many float16 a vector may hold."""
    blocks = -(-channels // ROWS)

    @prim_func
    def kernel():
        rows = size("rows")
        h = arg("h", (1, rows, targets * rank))
        (weight,) = form.args("w", targets * padded, rank)
        mixes = [arg(f"mix_{j}", (1, 1, channels)) for j in range(targets)]
        x = arg("x", (planes, rows, channels), dtype)
        out = arg("out", (targets, rows, channels), dtype)

        with grid((rows + tokens - 1) // tokens, targets * blocks) as (tile, block, thread):
            sums, scratch = registers((tokens,)), shared((tokens, THREADS))
            lane, target = T.bind(thread % LANES), T.bind(block // blocks)
            channel = T.bind(block % blocks * ROWS + thread // LANES)
            row = T.bind(target * padded + T.min(channel, channels - 1))
            ts = [T.bind(T.min(tile * tokens + m, rows - 1)) for m in range(tokens)]
            for m in range(tokens):
                T.buffer_store(sums, T.float32(0.0), [m])
            first = T.bind(target * rank)
            loads = [lambda at, t=t: h[0, t, first + at] for t in ts]
            add_products(sums, rank, form.dtype, float16_lanes, lane, lambda at: weight[row, at], loads)
            found = totals([sums[m] for m in range(tokens)], thread, LANES, scratch)
            mine, t = of_lane(found, lane), T.bind(tile * tokens + lane)

            def finish(j: int) -> None:
                with T.If(T.And(T.And(lane < tokens, channel < channels), t < rows)), T.Then():
                    current, before = (T.bind(cast(x[now + i, t, channel], "float32", 1)) for i in range(2))
                    value = current + (before - current) * (mixes[j][0, 0, channel] + mine)
                    T.buffer_store(out, narrow(value, dtype), [j, t, channel])

            choose(block, [j * blocks for j in range(targets + 1)], finish)

    return kernel

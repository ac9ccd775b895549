"""The loop of products of thin matrices: 16 output rows of a few tokens at a time, all inputs in one go."""

from __future__ import annotations

from collections.abc import Callable

from tvm.script.ir_builder import tirx as T

from ..builder import constant, span, splat
from .simd import LANES, registers

CHAINS = 4  # sums of a single token, which hide the latency of additions


def each_token_tile(h, first, rank: int, weight: Callable, tokens: int, finish: Callable) -> None:
    """Run ``finish(t, y)`` for every row t of h [1, T, ...], where y are the sums over k < ``rank`` of h[0, t, first + k] times
    ``weight(k)``, 16 lanes. ``tokens`` of them share a load of the weights; a last tile of fewer repeats the last one."""
    rows, lanes = h.shape[1], span(0, LANES)
    chains = CHAINS if tokens == 1 and rank % CHAINS == 0 else 1

    with T.serial(0, (rows + tokens - 1) // tokens) as tile:
        at = [T.bind(T.min(tile * tokens + m, rows - 1)) if tokens > 1 else tile for m in range(tokens)]
        sums = registers((tokens * chains, LANES))
        for m in range(tokens * chains):
            T.buffer_store(sums, constant(0.0, LANES), [m, lanes])
        with T.serial(0, rank // chains) as k:
            for chain in range(chains):
                w = T.bind(weight(k * chains + chain))
                for m, t in enumerate(at):
                    cell = m * chains + chain
                    product = w * splat(h[0, t, first + k * chains + chain], LANES)
                    T.buffer_store(sums, sums[cell, lanes] + product, [cell, lanes])
        totals = registers((tokens, LANES))
        for m in range(tokens):
            total = sums[m * chains, lanes]
            for chain in range(1, chains):
                total = total + sums[m * chains + chain, lanes]
            T.buffer_store(totals, total, [m, lanes])
        with T.serial(0, tokens) as m:  # what follows is much longer than what is above, and is there once
            finish(T.bind(T.min(tile * tokens + m, rows - 1)), T.bind(totals[m, lanes]))

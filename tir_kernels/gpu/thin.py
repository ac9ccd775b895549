"""Products of thin matrices, of which rows are too short for all threads of a block: ``LANES`` threads have one."""

from __future__ import annotations

from collections.abc import Callable

from tvm.script.ir_builder import tirx as T

from ..builder import span
from .heads import total
from .threads import THREADS, each, lanes_of, vector_of

LANES = 8
ROWS = THREADS // LANES  # of a block


def add_products(
    sums, rank: int, dtype: str, float16_lanes: int, lane, weight: Callable, hidden: list[Callable]
) -> None:
    """Add a lane's share of the products of one row to ``sums``, one for each of ``hidden``: ``weight(span)`` is a vector of
    ``dtype``, ``hidden[m](span)`` of float32, both of ``rank`` elements."""
    width = vector_of(dtype, rank, float16_lanes)
    narrow = vector_of("float32", width)

    def multiply(_, k) -> None:
        weights = lanes_of(weight(span(k, width)), width)
        for m, load in enumerate(hidden):
            values = [value for j in range(0, width, narrow) for value in lanes_of(load(span(k + j, narrow)), narrow)]
            T.buffer_store(sums, sums[m] + total([w * h for w, h in zip(weights, values)]), [m])

    each(rank, lane, LANES, width, multiply, unrolled=False)


def of_lane(values: list, lane):
    """Value m for lane m."""
    mine = values[0]
    for m, value in enumerate(values[1:], 1):
        mine = T.Select(lane == m, value, mine)
    return T.bind(mine)

"""Matrix products of single tokens on a GPU, weight bytes bound: several matrices in one launch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..activations import ACTIVATIONS
from ..builder import arg, prim_func, size, span
from ..product import Matrix, block_starts, check_planes, operands
from ..rows import RowFloat, Rows
from .product import CHUNK_WORDS, chunk_of, field, plane_of
from .threads import (
    THREADS,
    barrier,
    choose,
    each,
    exp,
    grid,
    lanes_of,
    narrow,
    registers,
    shared,
    totals,
    vector_of,
)

ROWS = 4  # weight rows of a thread: so many loads in flight, and every activation read once for all of them
LANES = (256, 128, 64)  # threads along a row, where they are mostly busy; else the least
FEWEST_LANES = 32
BUSY = 0.8


def lanes_along(chunks: int) -> int:
    """Threads of a block along a row of so many chunks."""
    busy = (lanes for lanes in LANES if chunks / (-(-chunks // lanes) * lanes) >= BUSY)
    return next(busy, FEWEST_LANES)


def cells(extent: int) -> Iterator[tuple[int, int]]:
    """The elements of every row."""
    return itertools.product(range(ROWS), range(extent))


@lru_cache(None)
def gemv(
    matrices: tuple[Matrix, ...],
    columns: int,
    form: Rows,
    x_dtype: str = "float32",
    planes: int = 1,
    gated: bool = False,
    residual: bool = False,
    tokens: int = 1,
    float16_lanes: int = 4,
) -> tirx.PrimFunc:
    """(x, weights.. [, gate][, residual] -> out..).

    Shapes as in ``cpu.gemv``: x [planes, T, K] in ``x_dtype``; weights as ``rows`` says; out_i [1, T, N_i] in its own
    dtype; gate and residual float32. Products and sums are float32. ``tokens`` (1, 2 or 4) are multiplied with the weights
    that are loaded once; ``float16_lanes`` is how many float16 a vector may hold.

    ``ROWS`` rows of a matrix belong to as many threads as ``lanes_along`` says, 16 bytes of each row a thread at a time;
    the threads' sums are added in two steps through shared memory."""
    check_planes(matrices, planes)
    chunk = chunk_of(form, columns, float16_lanes)
    chunks = -(-columns // chunk)
    lanes = lanes_along(chunks)
    groups = THREADS // lanes
    block_rows, sums = groups * ROWS, tokens * ROWS
    x_width = vector_of(x_dtype, chunk if columns % chunk == 0 else columns, float16_lanes)
    starts = block_starts(matrices, block_rows)

    @prim_func
    def kernel():
        rows = size("rows")
        x = arg("x", (planes, rows, columns), x_dtype)
        rest = operands(matrices, rows, columns, form, gated, residual)

        def load(i: int, first, at, loaded, scales):
            """Chunk ``at`` of ``ROWS`` rows of matrix i."""
            for r in range(ROWS):
                row = T.min(first + r, matrices[i].rows - 1)
                if isinstance(form, RowFloat):
                    T.buffer_store(loaded, rest.weights[i][0][row, span(at * chunk, chunk)], [r, span(0, chunk)])
                else:
                    q_weight, q_scale = rest.weights[i]
                    words = q_weight[row, T.ramp(at * CHUNK_WORDS, 1, CHUNK_WORDS)]
                    T.buffer_store(loaded, words, [r, T.ramp(0, 1, CHUNK_WORDS)])
                    T.buffer_store(scales, q_scale[row, at * CHUNK_WORDS // form.words], [r])

        def weight(loaded, r: int, k: int):
            """Weight k of the chunk, float32, without its scale."""
            if isinstance(form, RowFloat):
                return T.cast(loaded[r, k], "float32")
            return field(form, loaded[r, k // form.fields], k % form.fields)

        def load_x(plane, t, start, held):
            """Elements of x from ``start`` on, zeros past K."""
            if columns % chunk == 0:
                values = lanes_of(x[plane, t, span(start, x_width)], x_width)
            else:
                values = lanes_of(x[plane, t, span(T.min(start, columns - x_width), x_width)], x_width)
                values = [T.Select(start < columns, value, T.float32(0.0)) for value in values]
            for j, value in enumerate(values):
                T.buffer_store(held, value, [j])

        with grid((rows + tokens - 1) // tokens, starts[-1]) as (tile, block, thread):
            partial = shared((sums, THREADS))
            group, lane = T.bind(thread // lanes), T.bind(thread % lanes)
            plane = plane_of(matrices, block, starts)
            ts = [tile] if tokens == 1 else [T.bind(T.min(tile * tokens + m, rows - 1)) for m in range(tokens)]
            acc, part = registers((sums,)), registers((sums,))
            held = registers((x_width,))
            if isinstance(form, RowFloat):
                loaded, scales = registers((ROWS, chunk), form.dtype), None
            else:
                loaded = registers((ROWS, CHUNK_WORDS), "uint32")
                scales = registers((ROWS,), form.scale_dtype)
            expanded = registers((ROWS, x_width)) if tokens > 1 else None
            for j in range(sums):
                T.buffer_store(acc, T.float32(0.0), [j])

            def multiply(_, at):
                """Add the share of one chunk."""
                choose(
                    block,
                    starts,
                    lambda i: load(i, (block - starts[i]) * block_rows + group * ROWS, at, loaded, scales),
                )
                for j in range(sums):
                    T.buffer_store(part, T.float32(0.0), [j])
                for k in range(0, chunk, x_width):
                    if tokens > 1:
                        for r, j in cells(x_width):
                            T.buffer_store(expanded, weight(loaded, r, k + j), [r, j])
                    for m, t in enumerate(ts):
                        load_x(plane, t, at * chunk + k, held)
                        for r, j in cells(x_width):
                            w = weight(loaded, r, k + j) if tokens == 1 else expanded[r, j]
                            T.buffer_store(part, part[m * ROWS + r] + w * held[j], [m * ROWS + r])
                for j in range(sums):
                    share = part[j] if scales is None else part[j] * T.cast(scales[j % ROWS], "float32")
                    T.buffer_store(acc, acc[j] + share, [j])

            each(chunks, lane, lanes, 1, multiply, unrolled=False)
            for j in range(sums):
                T.buffer_store(partial, acc[j], [j, thread])
            barrier()
            share = lanes // sums
            mine, at = T.bind(lane // share), T.bind(group * lanes + lane % share)
            total = partial[mine, at]
            for j in range(1, sums):
                total = total + partial[mine, at + j * share]
            total = T.bind(total)
            if share > 1:
                barrier()
                (total,) = totals([total], thread, share, partial)

            def finish(i: int):
                matrix = matrices[i]
                row = T.bind((block - starts[i]) * block_rows + group * ROWS + mine % ROWS)
                t = tile if tokens == 1 else T.bind(tile * tokens + mine // ROWS)
                inside = T.And(lane % share == 0, row < matrix.rows)
                with T.If(inside if tokens == 1 else T.And(inside, t < rows)), T.Then():
                    y = ACTIVATIONS[matrix.activation](total, 1, exp)
                    y = rest.follow(y, lambda source: source[0, t, row])
                    T.buffer_store(rest.outs[i], narrow(y, matrix.dtype), [0, t, row])

            choose(block, starts, finish)

    return kernel

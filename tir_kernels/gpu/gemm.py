"""Matrix products of many tokens on a GPU, arithmetic bound: tiles of both factors in shared memory, float32 sums in
registers; for every GPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..activations import ACTIVATIONS
from ..builder import arg, prim_func, size, span
from ..product import Matrix, block_starts, check_planes, operands
from ..rows import RowFloat, RowGroup, Rows
from .product import field, plane_of
from .threads import THREADS, barrier, choose, exp, grid, lanes_of, narrow, registers, shared, vector_of

TILE = 64  # tokens and output rows of a block
CELL = 4  # tokens and output rows of a thread
SIDE = TILE // CELL
DEPTH = 32  # inputs between two barriers, at most


def words_between_barriers(form: RowGroup) -> int:
    """How many of a group's words ``DEPTH`` lets in."""
    return next(n for n in range(form.words, 0, -1) if form.words % n == 0 and n * form.fields <= DEPTH)


@lru_cache(None)
def gemm(
    matrices: tuple[Matrix, ...],
    columns: int,
    form: Rows,
    x_dtype: str = "float32",
    planes: int = 1,
    gated: bool = False,
    residual: bool = False,
    float16_lanes: int = 4,
) -> tirx.PrimFunc:
    """(x, weights.. [, gate][, residual] -> out..); arguments as in ``gemv``."""
    check_planes(matrices, planes)
    depth = DEPTH if isinstance(form, RowFloat) else words_between_barriers(form) * form.fields
    x_width = vector_of(x_dtype, math.gcd(columns, depth), float16_lanes)
    starts = block_starts(matrices, TILE)

    @prim_func
    def kernel():
        rows = size("rows")
        x = arg("x", (planes, rows, columns), x_dtype)
        rest = operands(matrices, rows, columns, form, gated, residual)

        def tasks(thread, count: int, emit: Callable):
            """Share ``count`` times ``TILE`` tasks out: ``emit(place in the tile, which)``, neighbors in the tile first."""
            for task in range(-(-count * TILE // THREADS)):
                index = thread + task * THREADS
                if (task + 1) * THREADS <= count * TILE:
                    emit(index % TILE, index // TILE)
                else:
                    with T.If(index < count * TILE), T.Then():
                        emit(index % TILE, index // TILE)

        def clamped(start, width: int):
            """Where to read ``width`` inputs: within the row."""
            return start if columns % depth == 0 else T.min(start, columns - width)

        def load_x(plane, tile, chunk, thread, xs):
            def emit(m, which):
                token, start = T.min(tile * TILE + m, rows - 1), chunk * depth + which * x_width
                values = lanes_of(x[plane, token, span(clamped(start, x_width), x_width)], x_width)
                for j, value in enumerate(values):
                    value = value if columns % depth == 0 else T.Select(start < columns, value, T.float32(0.0))
                    T.buffer_store(xs, value, [which * x_width + j, m])

            tasks(thread, depth // x_width, emit)

        def load_weights(i: int, first, chunk, thread, ws):
            def last_or(n):
                return T.min(first + n, matrices[i].rows - 1)

            def floats(n, which):
                width = vector_of(form.dtype, columns, float16_lanes)
                start = clamped(chunk * depth + which * width, width)
                for j, value in enumerate(lanes_of(rest.weights[i][0][last_or(n), span(start, width)], width)):
                    T.buffer_store(ws, value, [which * width + j, n])

            def fields(n, which):
                q_weight, q_scale = rest.weights[i]
                word = T.bind(q_weight[last_or(n), chunk * (depth // form.fields) + which])
                scale = T.bind(T.cast(q_scale[last_or(n), chunk * depth // form.group], "float32"))
                for j in range(form.fields):
                    T.buffer_store(ws, field(form, word, j) * scale, [which * form.fields + j, n])

            if isinstance(form, RowFloat):
                tasks(thread, depth // vector_of(form.dtype, columns, float16_lanes), floats)
            else:
                tasks(thread, depth // form.fields, fields)

        def multiply(xs, ws, token, row, acc):
            """Add the products of one pair of tiles."""
            left, right = registers((CELL,)), registers((CELL,))
            with T.serial(0, depth // CELL) as outer, T.unroll(0, CELL) as inner:
                k = outer * CELL + inner
                T.buffer_store(left, xs[k, T.ramp(token, 1, CELL)], [T.ramp(0, 1, CELL)])
                T.buffer_store(right, ws[k, T.ramp(row, 1, CELL)], [T.ramp(0, 1, CELL)])
                for m in range(CELL):
                    for n in range(CELL):
                        T.buffer_store(acc, acc[m, n] + left[m] * right[n], [m, n])

        def finish(i: int, first_token, first_row, acc):
            matrix = matrices[i]
            width = vector_of("float32", matrix.rows)
            for m in range(CELL):
                for n in range(0, CELL, width):
                    t, row = first_token + m, first_row + n
                    with T.If(T.And(t < rows, row < matrix.rows)), T.Then():
                        for j in range(n, n + width):
                            T.buffer_store(acc, ACTIVATIONS[matrix.activation](acc[m, j], 1, exp), [m, j])
                        y, at = acc[m, span(n, width)], span(row, width)
                        y = rest.follow(y, lambda source: source[0, t, at])
                        T.buffer_store(rest.outs[i], narrow(y, matrix.dtype, width), [0, t, at])

        with grid((rows + TILE - 1) // TILE, starts[-1]) as (tile, block, thread):
            xs, ws = shared((depth, TILE)), shared((depth, TILE))
            acc = registers((CELL, CELL))
            plane = plane_of(matrices, block, starts)
            token, row = T.bind(thread // SIDE * CELL), T.bind(thread % SIDE * CELL)
            for m in range(CELL):
                for n in range(CELL):
                    T.buffer_store(acc, T.float32(0.0), [m, n])
            with T.serial(0, -(-columns // depth)) as chunk:
                load_x(plane, tile, chunk, thread, xs)
                choose(block, starts, lambda i: load_weights(i, (block - starts[i]) * TILE, chunk, thread, ws))
                barrier()
                with T.If(tile * TILE + token < rows), T.Then():  # short prompts leave most threads without tokens
                    multiply(xs, ws, token, row, acc)
                barrier()
            choose(block, starts, lambda i: finish(i, tile * TILE + token, (block - starts[i]) * TILE + row, acc))

    return kernel

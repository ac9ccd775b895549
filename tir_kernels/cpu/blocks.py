"""Blocks of 16 output rows, in which the matrix products of CPUs share out their work and keep their results."""

from __future__ import annotations

from collections.abc import Callable

from tvm.script.ir_builder import tirx as T

from ..activations import ACTIVATIONS
from ..builder import span, splat
from ..product import Matrix, Operands, block_starts
from .simd import LANES, exp, registers


def each_block(matrices: tuple[Matrix, ...], rows_per_block: int, emit: Callable) -> None:
    """Run ``emit(matrix index, block)`` in parallel over the row blocks of all matrices."""
    starts = block_starts(matrices, rows_per_block)

    def dispatch(i: int, block):
        if i == len(matrices) - 1:
            return emit(i, block - starts[i])
        with T.If(block < starts[i + 1]):
            with T.Then():
                emit(i, block - starts[i])
            with T.Else():
                dispatch(i + 1, block)

    with T.parallel(0, starts[-1]) as block:
        dispatch(0, block)


def each_part(matrices: tuple[Matrix, ...], parts: int, emit: Callable) -> None:
    """Run ``emit(matrix index, block)`` over all blocks: one matrix after the other, equal parts of its rows in parallel."""
    for i, matrix in enumerate(matrices):
        blocks = matrix.rows // LANES // parts
        with T.parallel(0, parts) as part, T.serial(0, blocks) as j:
            emit(i, part * blocks + j)


def store_block(target, value, row, block, rows: int, plane: int = 0):
    """Write the 16 lanes of output block ``block`` that exist in a matrix of ``rows`` rows to target [planes, T, rows]."""
    if rows % LANES == 0:
        T.buffer_store(target, value, [plane, row, T.ramp(block * LANES, 1, LANES)])
        return
    with T.If(block < rows // LANES):
        with T.Then():
            T.buffer_store(target, value, [plane, row, T.ramp(block * LANES, 1, LANES)])
        with T.Else():
            lanes = registers((LANES,))
            T.buffer_store(lanes, value, [span(0, LANES)])
            for i in range(rows % LANES):
                T.buffer_store(target, lanes[i], [plane, row, block * LANES + i])


def load_block(source, row, block, rows: int, plane: int = 0):
    """Of source [planes, T, rows] the 16 lanes of output block ``block``; past ``rows`` they repeat the last row."""
    at = T.ramp(block * LANES, 1, LANES)
    if rows % LANES:
        at = T.min(at, splat(T.int64(rows - 1), LANES))
    return source[plane, row, at]


def finish_block(operands: Operands, matrices: tuple[Matrix, ...], i: int, product, row, block) -> None:
    """Write the 16 lanes of output block ``block`` of matrix i from its ``product``, with all that follows."""
    matrix = matrices[i]
    y = ACTIVATIONS[matrix.activation](product, LANES, exp)
    y = operands.follow(y, lambda source: load_block(source, row, block, matrix.rows))
    store_block(operands.outs[i], y, row, block, matrix.rows)

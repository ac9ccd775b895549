"""Fused products of matrices, on every device: what is computed, the arguments, and what follows a product."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .builder import arg


@dataclass(frozen=True)
class Matrix:
    """One product of a fused call: output rows N, what is applied to each output (a key of ``ACTIVATIONS``), the outputs'
    dtype, which is float32 on a CPU, and which plane of the inputs x [planes, T, K] it reads."""

    rows: int
    activation: str | None = None
    dtype: str = "float32"
    plane: int = 0


@dataclass(frozen=True)
class Operands:
    """What a fused product is called with after its inputs: the weights of each matrix as their form declares them, a
    gate and a residual [1, T, N_0] where there are some, and the outputs [1, T, N_i]."""

    weights: list[list]
    gate: object | None
    residual: object | None
    outs: list

    def follow(self, y, read: Callable):
        """``y`` times the gate, plus the residual; ``read(buffer)`` loads of either what belongs to ``y``."""
        if self.gate is not None:
            y = y * read(self.gate)
        if self.residual is not None:
            y = y + read(self.residual)
        return y


def operands(matrices: tuple[Matrix, ...], rows, columns: int, form, gated: bool, residual: bool) -> Operands:
    """Declare the arguments of a fused product of [N_i, K] matrices after its inputs, in the order of ``Operands``."""
    followed = 1, rows, matrices[0].rows
    return Operands(
        weights=[form.args(f"w{i}", matrix.rows, columns) for i, matrix in enumerate(matrices)],
        gate=arg("gate", followed) if gated else None,
        residual=arg("residual", followed) if residual else None,
        outs=[arg(f"out{i}", (1, rows, matrix.rows), matrix.dtype) for i, matrix in enumerate(matrices)],
    )


def check_planes(matrices: tuple[Matrix, ...], planes: int) -> None:
    """Raises ValueError for a matrix that reads a plane which the inputs do not have."""
    for matrix in matrices:
        if matrix.plane not in range(planes):
            raise ValueError(f"A matrix reads plane {matrix.plane} of inputs that have {planes}.")


def block_starts(matrices: tuple[Matrix, ...], rows_per_block: int) -> list[int]:
    """The first block of each matrix where all are worked on in one loop, and the number of blocks."""
    starts = [0]
    for matrix in matrices:
        starts.append(starts[-1] - (-matrix.rows // rows_per_block))
    return starts

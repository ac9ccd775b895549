"""What products of matrices are given to compute, on every device."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Matrix:
    """One product of a fused call: output rows N, what is applied to each output (a key of ``ACTIVATIONS``), and the
    outputs' dtype, which is float32 on a CPU."""

    rows: int
    activation: str | None = None
    dtype: str = "float32"


def block_starts(matrices: tuple[Matrix, ...], rows_per_block: int) -> list[int]:
    """The first block of each matrix where all are worked on in one loop, and the number of blocks."""
    starts = [0]
    for matrix in matrices:
        starts.append(starts[-1] - (-matrix.rows // rows_per_block))
    return starts

"""How a compiled library wants stored tensors in memory: pure permutations, done while a model is loaded.

The files on disk are the same for every target; ``tir_kernels.packed`` says what the kernels make of a layout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

LANES = 16


@dataclass(frozen=True)
class Layout:
    """``shape`` maps a stored shape to the shape in memory, ``permute`` an array to a view (or copy) of that shape."""

    shape: Callable[[tuple[int, ...]], tuple[int, ...]]
    permute: Callable[[np.ndarray], np.ndarray]


def _row_blocks(array: np.ndarray) -> np.ndarray:
    rows, columns = array.shape
    if rows % LANES:
        array = np.concatenate([array, np.zeros((-rows % LANES, columns), array.dtype)])
    return array.reshape(-1, LANES, columns).transpose(0, 2, 1)


LAYOUTS: dict[str, Layout] = {
    "stored": Layout(lambda shape: shape, lambda array: array),
    # [N, X] -> [ceil(N / 16), X, 16], zeros past N
    "row_blocks": Layout(lambda shape: (-(-shape[0] // LANES), shape[1], LANES), _row_blocks),
    # [X, N], the transposed storage of q4f16_0, to the same
    "column_blocks": Layout(lambda shape: (-(-shape[1] // LANES), shape[0], LANES), lambda array: _row_blocks(array.T)),
}

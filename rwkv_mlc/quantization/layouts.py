"""How a compiled library wants stored tensors in memory: pure permutations, done while a model is loaded.

The files on disk are the same for every target; ``tir_kernels.cpu.packed`` says what the kernels make of a layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

LANES = 16
LINE = 64  # bytes
MAPPED = "mapped"  # as stored, and left in its file where the memory of a device is the processes' own


@dataclass(frozen=True)
class Layout:
    """``shape`` maps a stored shape to the shape in memory, ``permute`` an array to a view (or copy) of that shape.

    ``rows`` stored rows (the last of them may be fewer) become one slice along ``axis`` in memory, whatever the other
    rows hold; None where a tensor can only be permuted as a whole."""

    shape: Callable[[tuple[int, ...]], tuple[int, ...]]
    permute: Callable[[np.ndarray], np.ndarray]
    rows: int | None = None
    axis: int = 0

    def parts(self, shape: tuple[int, ...], length: int) -> Iterator[tuple[slice, tuple[slice, ...]]]:
        """Stored rows of a tensor of the stored ``shape``, ``length`` at once or a few more or fewer, and where in memory
        what ``permute`` makes of them belongs."""
        if self.rows is None:
            yield slice(0, shape[0]), ()
            return
        step = self.rows * max(1, length // self.rows)
        for start in range(0, shape[0], step):
            stop = min(start + step, shape[0])
            place = slice(start // self.rows, -(-stop // self.rows))
            yield slice(start, stop), (slice(None),) * self.axis + (place,)


def _in_blocks(array: np.ndarray, rows: int) -> np.ndarray:
    """[N, X] -> [ceil(N / rows), rows, X], zeros past N."""
    if len(array) % rows:
        array = np.concatenate([array, np.zeros((-len(array) % rows, array.shape[1]), array.dtype)])
    return array.reshape(-1, rows, array.shape[1])


def _row_blocks(array: np.ndarray, rows: int = LANES) -> np.ndarray:
    return _in_blocks(array, rows).transpose(0, 2, 1)


def _by_input(octets: np.ndarray) -> np.ndarray:
    """[n, 64, X] -> a view [n, X, 64] of a copy, whose rows are apart by what does not lead to the same sets of the cache."""
    blocks, rows, extent = octets.shape
    copy = np.empty((blocks, rows, extent + LINE), np.uint8)[..., :extent]
    copy[...] = octets
    return copy.transpose(0, 2, 1)


def _lines_of_bytes(words: np.ndarray) -> np.ndarray:
    octets = _in_blocks(np.ascontiguousarray(words).view(np.uint8), LINE)
    return np.ascontiguousarray(_by_input(octets)).view(np.uint32)


def _lines_of_nibbles(words: np.ndarray) -> np.ndarray:
    octets = _in_blocks(np.ascontiguousarray(words).view(np.uint8), 2 * LINE)
    first, second = octets[:, :LINE], octets[:, LINE:]
    lines = np.empty((len(octets), octets.shape[2], 2, LINE), np.uint8)
    lines[:, :, 0] = _by_input(first & 0x0F | second << 4)
    lines[:, :, 1] = _by_input(first >> 4 | second & 0xF0)
    return lines.reshape(len(octets), -1, LINE).view(np.uint32)


def _line_scales(scales: np.ndarray, rows: int) -> np.ndarray:
    blocks = _in_blocks(scales, rows)
    interleaved = blocks.reshape(-1, rows // LINE, 4, 4, 4, scales.shape[1]).swapaxes(2, 3)
    return interleaved.reshape(blocks.shape).transpose(0, 2, 1)


def _line_layouts(bits: int, permute: Callable[[np.ndarray], np.ndarray]) -> dict[str, Layout]:
    """Fields and scales of a matrix of ``bits``, [N, words] and [N, G] or the other way round, as the tiles of
    ``tir_kernels.cpu.packed``: [tiles, K, 16] and [tiles, G, rows of a tile]."""
    rows, fields = 8 * LINE // bits, 32 // bits

    def lines(outputs: int, words: int) -> tuple[int, ...]:
        return -(-outputs // rows), words * fields, LINE // 4

    def scales(outputs: int, groups: int) -> tuple[int, ...]:
        return -(-outputs // rows), groups, rows

    def permute_scales(array: np.ndarray) -> np.ndarray:
        return _line_scales(array, rows)

    return {
        f"lines_{bits}": Layout(lambda shape: lines(*shape), permute, rows=rows),
        f"line_scales_{bits}": Layout(lambda shape: scales(*shape), permute_scales, rows=rows),
        f"transposed_lines_{bits}": Layout(lambda shape: lines(*shape[::-1]), lambda array: permute(array.T)),
        f"transposed_line_scales_{bits}": Layout(
            lambda shape: scales(*shape[::-1]), lambda array: permute_scales(array.T), rows=1, axis=1
        ),
    }


LAYOUTS: dict[str, Layout] = {
    "stored": Layout(lambda shape: shape, lambda array: array, rows=1),
    MAPPED: Layout(lambda shape: shape, lambda array: array, rows=1),
    # [X, N], the transposed storage of q4f16_0, to [N, X]
    "transposed": Layout(lambda shape: shape[::-1], lambda array: array.T, rows=1, axis=1),
    # [N, X] -> [ceil(N / 16), X, 16], zeros past N
    "row_blocks": Layout(lambda shape: (-(-shape[0] // LANES), shape[1], LANES), _row_blocks, rows=LANES),
    # float16 [N, K] -> [ceil(N / 32), K, 32], the same in lines of 64 bytes
    "lines_16": Layout(lambda shape: (-(-shape[0] // 32), shape[1], 32), lambda array: _row_blocks(array, 32), rows=32),
    # [X, N], the transposed storage of q4f16_0, to the same
    "column_blocks": Layout(
        lambda shape: (-(-shape[1] // LANES), shape[0], LANES), lambda array: _row_blocks(array.T), rows=1, axis=1
    ),
    **_line_layouts(4, _lines_of_nibbles),
    **_line_layouts(8, _lines_of_bytes),
}

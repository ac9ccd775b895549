"""Symmetric group quantization of a matrix: the arithmetic and the packing of mlc_llm's ``GroupQuantize``.

Weights are cast to the scale's dtype first, and scale and quotient are computed and rounded in that dtype
(mlc-llm ``python/mlc_llm/quantization/group_quantization.py``, ``_quantize``; TVM's ``round`` takes ties to even):

    scale = max(max |W_g|, 1e-4) / max_int        max_int = 2 ** (bits - 1) - 1
    q     = clip(round(W / scale + max_int), 0, 2 * max_int)

The floor of 1e-4 is that of mlc_llm's first release; without it a group of zeros divides by zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

WORD_BITS = 32
SCALE_FLOOR = 1e-4
BLOCK_ELEMENTS = 1 << 18


@dataclass(frozen=True)
class GroupForm:
    """A matrix [out, in] as unsigned integers of ``bits`` bits, packed along ``in`` into uint32 words from their lowest
    bit, and one scale for every ``group`` of them.

    ``q_weight`` is [out, words] and ``q_scale`` [out, groups], or both the other way round where ``transposed``; the
    last group of a ragged row is filled up with zero bits."""

    bits: int
    group: int
    scale_dtype: str
    transposed: bool = False

    @property
    def max_int(self) -> int:
        return 2 ** (self.bits - 1) - 1

    @property
    def per_word(self) -> int:
        return WORD_BITS // self.bits

    def shapes(self, shape: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, int]]:
        """The shapes of ``q_weight`` and ``q_scale`` for a matrix of ``shape`` [out, in]."""
        rows, columns = shape
        groups = -(-columns // self.group)
        words = groups * self.group // self.per_word
        return ((words, rows), (groups, rows)) if self.transposed else ((rows, words), (rows, groups))

    def quantize(self, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``q_weight`` uint32 and ``q_scale`` of a float32 ``matrix`` [out, in].

        Raises OverflowError when a weight does not fit the scale's dtype."""
        weight_shape, scale_shape = self.shapes(matrix.shape)
        q_weight, q_scale = np.empty(weight_shape, np.uint32), np.empty(scale_shape, self.scale_dtype)
        weights, scales = self._by_row(q_weight, q_scale)
        for rows in row_blocks(matrix.shape):
            weights[rows], scales[rows] = self._quantize_rows(matrix[rows])
        return q_weight, q_scale

    def dequantize(self, q_weight: np.ndarray, q_scale: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The float32 matrix [out, in] that the kernels compute with: (q - max_int) * scale."""
        matrix = np.empty(shape, np.float32)
        for rows in row_blocks(shape):
            matrix[rows] = self.dequantize_rows(q_weight, q_scale, rows, shape[1])
        return matrix

    def dequantize_rows(self, q_weight: np.ndarray, q_scale: np.ndarray, rows: slice, columns: int) -> np.ndarray:
        """The rows ``rows`` of ``dequantize``, float32 [rows, columns]."""
        weights, scales = self._by_row(q_weight, q_scale)
        words, scale = weights[rows], scales[rows].astype(np.float32)
        values = np.empty((*words.shape, self.per_word), np.float32)
        for k in range(self.per_word):
            values[..., k] = (words >> np.uint32(k * self.bits)) & np.uint32(2**self.bits - 1)
        groups = values.reshape(*scale.shape, self.group)
        groups -= np.float32(self.max_int)
        groups *= scale[..., None]
        return groups.reshape(len(words), -1)[:, :columns]

    def _by_row(self, q_weight: np.ndarray, q_scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return (q_weight.T, q_scale.T) if self.transposed else (q_weight, q_scale)

    def _quantize_rows(self, block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[rows, words] and [rows, groups]."""
        dtype = np.dtype(self.scale_dtype)
        rows, columns = block.shape
        groups = -(-columns // self.group)
        weights = np.zeros((rows, groups * self.group), np.float32)
        weights[:, :columns] = cast_finite(block, dtype)
        weights = weights.reshape(rows, groups, self.group)
        scale = np.abs(weights).max(axis=-1).astype(dtype)
        scale = np.maximum(scale, dtype.type(SCALE_FLOOR)) / dtype.type(self.max_int)

        weights /= scale.astype(np.float32)[..., None]
        round_to(dtype, weights)
        weights += np.float32(self.max_int)
        round_to(dtype, weights)
        levels = np.rint(weights, out=weights).clip(0, 2 * self.max_int).astype(np.uint8).reshape(rows, -1)
        levels[:, columns:] = 0

        fields = levels.reshape(rows, -1, self.per_word)
        words = np.zeros(fields.shape[:2], np.uint32)
        for k in range(self.per_word):
            words |= fields[..., k].astype(np.uint32) << np.uint32(k * self.bits)
        return words, scale


def row_blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices of rows with about ``BLOCK_ELEMENTS`` elements each, so that temporaries stay in the cache."""
    step = max(1, BLOCK_ELEMENTS // shape[1])
    return (slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step))


def cast_finite(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """``array`` in ``dtype``; OverflowError when a value lies beyond its range."""
    if dtype != array.dtype and (largest := np.abs(array).max()) > np.finfo(dtype).max:
        raise OverflowError(f"a value of magnitude {largest:.6g}, beyond the range of {dtype}")
    return array.astype(dtype)


def round_to(dtype: np.dtype, array: np.ndarray) -> None:
    """Round the float32 ``array`` in place to the 11 significant bits of float16, ties to even; nothing for float32.

    After a float32 sum or quotient of float16 values this gives what float16 arithmetic gives, since float32 has more
    than twice the digits; only results below float16's smallest normal number keep digits that float16 drops."""
    if dtype == np.float16:
        bits = array.view(np.uint32)
        bits += ((bits >> 13) & 1) + np.uint32(0xFFF)
        bits &= np.uint32(0xFFFFE000)

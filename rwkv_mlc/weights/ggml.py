"""How the files of ggml's programs, rwkv.cpp and llama.cpp, store numbers.

A row is stored in blocks of elements, each with scales of its own. The ``gguf`` package of ggml's authors says how large the
blocks are, and computes their values as ggml does.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

READ_AT_ONCE = 1 << 20  # elements; what they are computed from takes several times their size


@dataclass(frozen=True)
class Format:
    """How elements are stored: ``block`` of them in ``block_bytes``. ``name`` is numpy's where numpy has the type."""

    name: str
    kind: GGMLQuantizationType
    block: int
    block_bytes: int

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor whose rows are whole blocks."""
        return prod(shape) // self.block * self.block_bytes

    def read(self, path: Path, offset: int, shape: tuple[int, ...]) -> np.ndarray:
        """The tensor at a place of a file, float32 [*shape]."""
        rows = (
            np.memmap(path, np.uint8, "r", offset, (self.nbytes(shape),)).view(np.ndarray).reshape(prod(shape[:-1]), -1)
        )
        result = np.empty((len(rows), shape[-1]), np.float32)
        step = max(READ_AT_ONCE // shape[-1], 1)
        for start in range(0, len(rows), step):
            result[start : start + step] = dequantize(rows[start : start + step], self.kind)
        return result.reshape(shape)


NUMPY_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

FORMATS = {
    kind.name: Format(NUMPY_NAMES.get(kind.name, kind.name), kind, *GGML_QUANT_SIZES[kind])
    for kind in map(
        GGMLQuantizationType.__getitem__,
        "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS".split(),
    )
}
"""By ggml's names."""

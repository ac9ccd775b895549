"""Rows of different lengths as one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .model import MAX_CHUNK


def batch_of(rows: Sequence[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """The tokens of ``rows`` [B, T] and whether they are theirs: rows are filled up with id 0 to one more than a number of
    whole chunks."""
    length = -(-max(len(row) - 1 for row in rows) // MAX_CHUNK) * MAX_CHUNK + 1
    tokens, own = (torch.zeros(len(rows), length, dtype=dtype, device=device) for dtype in (torch.long, torch.bool))
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
        own[i, : len(row)] = True
    return tokens, own

"""The second halves of low-rank pairs, on every device: what is computed of each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Expansion:
    """One product of a fused call: a thin matrix [rows, rank], whether its result gets a bias [rows], and what is applied to
    each output then (a key of ``ACTIVATIONS``)."""

    rows: int
    rank: int
    activation: str | None = None
    biased: bool = True

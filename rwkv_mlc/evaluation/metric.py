"""A figure with its interval, and the difference of two with theirs, from the same resampled units.

The units (documents, or blocks of consecutive tokens) are drawn with replacement, the same ones for every model, and the
interval is between percentiles of what they give (B. Efron, "Bootstrap Methods", 1979): a paired interval is narrow where two
models fail at the same places, however wide each one's own is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

DRAWS, LEVEL = 1000, 0.95
MOST_DRAWN = 1 << 24  # counts held at once


@dataclass(frozen=True)
class Figure:
    """``value``, and the ``low`` and ``high`` end of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Metric:
    """A sum over units, as a part of their weights: ``sums[i]`` and ``weights[i]`` are those of unit i, float64.

    A "share" and a "mean" are the quotient of the totals, a "perplexity" its exponential. Two of the same units differ by a
    difference, and two perplexities by their ratio."""

    kind: Literal["share", "mean", "perplexity"]
    sums: np.ndarray
    weights: np.ndarray

    @classmethod
    def share(cls, hits: np.ndarray) -> Metric:
        """Of units that are true."""
        return cls("share", np.asarray(hits, np.float64), np.ones(len(hits)))

    def figure(self, seed: int = 0) -> Figure:
        return self._figure(self.sums, self.weights, seed)

    def is_comparable(self, other: Metric) -> bool:
        """Whether both are of the same units."""
        return self.kind == other.kind and np.array_equal(self.weights, other.weights)

    def against(self, base: Metric, seed: int = 0) -> Figure:
        """This one less ``base``, or divided by it where both are perplexities. Raises ValueError for other units."""
        if not self.is_comparable(base):
            raise ValueError("the two are not of the same units")
        return self._figure(self.sums - base.sums, self.weights, seed)

    def _figure(self, sums: np.ndarray, weights: np.ndarray, seed: int) -> Figure:
        drawn = _draw(len(sums), seed)
        quotients = np.quantile((drawn @ sums) / (drawn @ weights), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        ends = [sums.sum() / weights.sum(), *quotients]
        return Figure(*(_exponential(end) if self.kind == "perplexity" else float(end) for end in ends))


@lru_cache(maxsize=4)
def _draw(units: int, seed: int) -> np.ndarray:
    """How often each unit occurs in each draw, float64 [draws, units]; fewer draws of very many units."""
    draws = max(100, min(DRAWS, MOST_DRAWN // units))
    return np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), size=draws).astype(np.float64)


def _exponential(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def blocks(values: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums and lengths of blocks of ``length`` consecutive values, the last of which may be shorter: neighboring tokens are not
    drawn apart, as they are hard or easy together."""
    starts = np.arange(0, len(values), length)
    return np.add.reduceat(values.astype(np.float64), starts), np.diff(np.append(starts, len(values))).astype(
        np.float64
    )


def plain(figure: Figure) -> dict[str, Any]:
    """As JSON has it, which has no infinity."""
    ends = (figure.value, figure.low, figure.high)
    value, low, high = (end if math.isfinite(end) else None for end in ends)
    return {"value": value, "interval": [low, high]}

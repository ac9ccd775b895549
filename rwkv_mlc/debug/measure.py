"""How far two tensors are apart."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Difference:
    """``relative_rms`` is the root mean square of a - b as a part of that of b, infinite where the shapes differ or one of
    the two is not finite where the other is; the rest is over what is finite in both. Pairs are of a and b: ``nan``,
    ``inf`` count elements, ``largest`` and ``smallest`` are magnitudes, the smallest of those that are not zero."""

    shape: tuple[int, ...]
    max_abs: float
    relative_rms: float
    cosine: float
    nan: tuple[int, int]
    inf: tuple[int, int]
    largest: tuple[float, float]
    smallest: tuple[float, float]

    @property
    def nonfinite(self) -> str:
        """Says how many NaN and Inf each side has; empty where there are none."""
        counts = [
            f"{nan} NaN and {inf} Inf in {which}" for which, nan, inf in zip("AB", self.nan, self.inf) if nan or inf
        ]
        return ", ".join(counts)


def measure(a: np.ndarray, b: np.ndarray) -> Difference:
    finite = [array[np.isfinite(array)] for array in (a, b)]
    magnitudes = [np.abs(array[array != 0]) for array in finite]
    counted = {
        "shape": b.shape,
        "nan": tuple(int(np.isnan(array).sum()) for array in (a, b)),
        "inf": tuple(int(np.isinf(array).sum()) for array in (a, b)),
        "largest": tuple(float(m.max(initial=0.0)) for m in magnitudes),
        "smallest": tuple(float(m.min(initial=math.inf)) if m.size else 0.0 for m in magnitudes),
    }
    if a.shape != b.shape:
        return Difference(max_abs=math.inf, relative_rms=math.inf, cosine=0.0, **counted)
    both = np.isfinite(a) & np.isfinite(b)
    x, y = a[both].astype(np.float64), b[both].astype(np.float64)
    lengths = math.sqrt((x * x).sum() * (y * y).sum())
    return Difference(
        max_abs=float(np.abs(x - y).max(initial=0.0)),
        relative_rms=relative(a, b),
        cosine=float((x * y).sum() / lengths) if lengths else float(np.array_equal(x, y)),
        **counted,
    )


def relative(a: np.ndarray, b: np.ndarray) -> float:
    """``Difference.relative_rms``."""
    if a.shape != b.shape or not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return math.inf
    finite = np.isfinite(b)
    x, y = a[finite].astype(np.float64), b[finite].astype(np.float64)
    error, scale = math.sqrt(((x - y) ** 2).sum()), math.sqrt((y * y).sum())
    return error / scale if scale else (math.inf if error else 0.0)


def relative_of_groups(a: np.ndarray, b: np.ndarray, size: int) -> float:
    """What the norm of every ``size`` elements makes of the error: root mean square over the groups of each one's error, as a
    part of the group's own standard deviation."""
    if relative(a, b) in (0.0, math.inf):
        return relative(a, b)
    x, y = (array.astype(np.float64).reshape(-1, size) for array in (a, b))
    deviations = y.std(axis=1)
    errors = np.sqrt(((x - y) ** 2).mean(axis=1))[deviations > 0] / deviations[deviations > 0]
    return float(np.sqrt(np.nanmean(errors**2)))

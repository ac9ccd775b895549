"""Seconds of repeated calls."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

MIN_RUNS = 10
MIN_SECONDS = 2.0
FEW_RUNS = 5  # enough for calls that have taken MAX_SECONDS by then
MAX_SECONDS = 20.0
ROUND_SECONDS = 0.2  # of calls between two measurements of a limit


def seconds_of(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def is_enough(seconds: list[float], min_runs: int = 1) -> bool:
    """Whether calls of these lengths say what such a call takes: ``MIN_RUNS`` of them and ``MIN_SECONDS`` seconds, or
    ``FEW_RUNS`` and ``MAX_SECONDS``; ``min_runs`` of them at any rate."""
    runs, total = len(seconds), sum(seconds)
    many, long = runs >= MIN_RUNS and total >= MIN_SECONDS, runs >= FEW_RUNS and total >= MAX_SECONDS
    return runs >= min_runs and (many or long)


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median and the tenth and ninetieth percentile of ``runs`` calls."""

    median: float
    p10: float
    p90: float
    runs: int

    @classmethod
    def of(cls, call: Callable[[], object], min_runs: int = 1) -> Timing:
        """Call it once to warm up, then until it ``is_enough``."""
        call()
        seconds: list[float] = []
        while not is_enough(seconds, min_runs):
            seconds.append(seconds_of(call))
        return cls.summary(seconds)

    @classmethod
    def summary(cls, seconds: list[float]) -> Timing:
        p10, median, p90 = (float(q) for q in np.quantile(seconds, (0.1, 0.5, 0.9)))
        return cls(median, p10, p90, len(seconds))

    def rate(self, amount: float) -> dict[str, float]:
        """``amount`` a second at the median and at both percentiles."""
        return {"median": amount / self.median, "p10": amount / self.p90, "p90": amount / self.p10}


@dataclass(frozen=True)
class Compared:
    """A call in turn with its limit: ``limits`` are amounts a second, one more than there were rounds;
    ``unit_fraction`` times the amount of a call is the fraction of the limit that it reaches: the median over the rounds,
    each beside the better of the two limits around it."""

    timing: Timing
    limits: list[float]
    unit_fraction: float

    @classmethod
    def of(cls, call: Callable[[], object], limit: Callable[[], float], min_runs: int = 1) -> Compared:
        """Rounds of calls until all together are enough. A machine that changes its pace between two rounds changes it
        for both."""
        call()
        limits, seconds, fractions = [limit()], [], []
        while not is_enough(seconds, min_runs):
            own = [seconds_of(call)]
            while sum(own) < ROUND_SECONDS and not is_enough(seconds + own, min_runs):
                own.append(seconds_of(call))
            limits.append(limit())
            fractions.append(1 / np.median(own) / max(limits[-2:]))
            seconds += own
        return cls(Timing.summary(seconds), limits, float(np.median(fractions)))

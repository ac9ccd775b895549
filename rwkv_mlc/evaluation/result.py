"""What a task found of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .metric import Figure, Metric, plain
from .scorer import Scorer


@dataclass(frozen=True, eq=False)
class Result:
    """``metrics`` by what they are called; ``counts`` say of how much, such as documents and tokens."""

    scorer: Scorer
    metrics: dict[str, Metric]
    counts: dict[str, int]

    def figures(self, seed: int) -> dict[str, Figure]:
        return {name: metric.figure(seed) for name, metric in self.metrics.items()}

    def against(self, base: Result, seed: int) -> dict[str, Figure]:
        """Of metrics of the same units. A text has other tokens, and another number of blocks, in another vocabulary."""
        own = self.metrics.items()
        return {name: m.against(base.metrics[name], seed) for name, m in own if m.is_comparable(base.metrics[name])}

    def to_dict(self, base: Result | None, seed: int) -> dict[str, Any]:
        """As JSON, with the differences from ``base`` where there is one."""
        metrics = {name: plain(figure) for name, figure in self.figures(seed).items()}
        for name, figure in (self.against(base, seed) if base else {}).items():
            metrics[name]["against_first"] = plain(figure)
        return {"model": self.scorer.to_dict(), **self.counts, "metrics": metrics}

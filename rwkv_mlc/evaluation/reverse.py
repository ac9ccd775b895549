"""How many strings a model reverses without a mistake, by their length."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .answers import answer
from .metric import Metric
from .result import Result
from .reversal import ASKED, ENDED, is_exact
from .scorer import Scorer

LENGTHS = (range(1, 11), range(11, 21), range(21, 31), range(31, 41))
AT_ONCE = 100  # strings between two reports


def reverse(scorer: Scorer, strings: Sequence[str], tell: Callable[[int, int], None] = lambda *_: None) -> Result:
    """The share of ``exact`` answers, of all strings and by their length. ``tell`` gets how many of how many were asked.

    Raises UserError for a vocabulary that cannot spell digits, and for logits that are not finite."""
    prompts = [scorer.tokenizer.encode(digits + ASKED) for digits in strings]
    exact: list[bool] = []
    for first in range(0, len(strings), AT_ONCE):
        asked = strings[first : first + AT_ONCE]
        answers = answer(scorer, prompts[first : first + AT_ONCE], [len(digits) + len(ENDED) for digits in asked])
        exact += [is_exact(digits, scorer.tokenizer.decode(a.tokens)) for digits, a in zip(asked, answers)]
        tell(len(exact), len(strings))
    hits, sizes = np.array(exact), np.array([len(digits) for digits in strings])
    metrics = {"exact": Metric.share(hits)}
    for lengths in LENGTHS:
        if (among := np.isin(sizes, lengths)).any():
            metrics[f"{lengths[0]} to {lengths[-1]} digits"] = Metric.share(hits[among])
    return Result(scorer, metrics, {"strings": len(strings)})

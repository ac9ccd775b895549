"""Strings of digits and their reversals: the task of the ruler, ``configs/demo/rwkv-7-reverser``.

A model keeps a string's digits in its state alone until it has read all of them, and one wrong digit makes an answer wrong:
what a state or a weight loses shows in the share of exact answers long before it shows in a perplexity."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np

from .answers import answer
from .metric import Metric
from .result import Result
from .scorer import Scorer

MOST_DIGITS = 40
MEASURED, MEASURED_SEED = 500, 1_000_037
ASKED, ENDED = "=", "\n"
LENGTHS = (range(1, 11), range(11, 21), range(21, 31), range(31, 41))
AT_ONCE = 100  # strings between two reports


def string(rng: random.Random, most: int = MOST_DIGITS) -> str:
    """Digits drawn independently; every length from 1 to ``most`` is as likely."""
    return "".join(rng.choices("0123456789", k=rng.randint(1, most)))


def measured(number: int = MEASURED) -> list[str]:
    """The first of the strings that models are measured on."""
    rng = random.Random(MEASURED_SEED)
    return [string(rng) for _ in range(number)]


def is_exact(digits: str, answered: str) -> bool:
    """Whether an answer reverses them without a mistake, to the end of the line and not beyond."""
    return answered == digits[::-1] + ENDED


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

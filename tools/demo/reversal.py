"""Strings of digits and their reversals: what the ruler learns, and how it is read.

A model keeps a string's digits in its state alone until it has read all of them, and one wrong digit makes an answer wrong:
what a state or a weight loses shows in the share of exact answers long before it shows in a perplexity."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import count

FIRST_DIGITS, MOST_DIGITS = 5, 40
MEASURED, MEASURED_SEED = 500, 1_000_037
ASKED, ENDED = "=", "\n"


def string(rng: random.Random, length: int) -> str:
    """Digits drawn independently."""
    return "".join(rng.choices("0123456789", k=length))


def growing_strings(seed: int, steps: int, batch: int) -> Iterator[str]:
    """Strings to learn from, each ``batch`` of one length: short ones at first, and all lengths alike after ``steps``."""
    rng = random.Random(seed)
    for step in count():
        length = rng.randint(1, min(MOST_DIGITS, FIRST_DIGITS + (MOST_DIGITS - FIRST_DIGITS) * step // steps))
        for _ in range(batch):
            yield string(rng, length)


def measured(number: int = MEASURED) -> list[str]:
    """The first of the strings that models are measured on, whose lengths are all as likely."""
    rng = random.Random(MEASURED_SEED)
    return [string(rng, rng.randint(1, MOST_DIGITS)) for _ in range(number)]


def answered(digits: str) -> str:
    return digits + ASKED + digits[::-1] + ENDED


def exact_share(answer: Callable[[str], str], number: int = MEASURED) -> float:
    """The share of strings that ``answer(prompt)`` reverses without a mistake, to the end of the line and not beyond."""
    asked = measured(number)
    return sum(answer(digits + ASKED) == digits[::-1] + ENDED for digits in asked) / len(asked)

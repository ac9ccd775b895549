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


def string(rng: random.Random, most: int = MOST_DIGITS) -> str:
    """Digits drawn independently; every length from 1 to ``most`` is as likely."""
    return "".join(rng.choices("0123456789", k=rng.randint(1, most)))


def growing_strings(seed: int, until: int) -> Iterator[str]:
    """Strings to learn from: of at most ``FIRST_DIGITS`` at first, and of all lengths after ``until`` of them."""
    rng = random.Random(seed)
    for i in count():
        yield string(rng, min(MOST_DIGITS, FIRST_DIGITS + (MOST_DIGITS - FIRST_DIGITS) * i // until))


def measured(number: int = MEASURED) -> list[str]:
    """The first of the strings that models are measured on."""
    rng = random.Random(MEASURED_SEED)
    return [string(rng) for _ in range(number)]


def answered(digits: str) -> str:
    return digits + ASKED + digits[::-1] + ENDED


def exact_share(answer: Callable[[str], str], number: int = MEASURED) -> float:
    """The share of strings that ``answer(prompt)`` reverses without a mistake, to the end of the line and not beyond."""
    asked = measured(number)
    return sum(answer(digits + ASKED) == digits[::-1] + ENDED for digits in asked) / len(asked)

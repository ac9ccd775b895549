"""Strings of digits and their reversals: the task of the ruler, ``configs/demo/rwkv-7-reverser``.

A model keeps a string's digits in its state alone until it has read all of them, and one wrong digit makes an answer wrong:
what a state or a weight loses shows in the share of exact answers long before it shows in a perplexity."""

from __future__ import annotations

import random

MOST_DIGITS = 40
MEASURED, MEASURED_SEED = 500, 1_000_037
ASKED, ENDED = "=", "\n"


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

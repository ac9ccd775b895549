"""Strings of digits to learn to reverse; ``rwkv_mlc/evaluation/reversal.py`` has those that models are measured on."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import count

from rwkv_mlc.evaluation.reversal import ASKED, ENDED, MEASURED, MOST_DIGITS, is_exact, measured, string

FIRST_DIGITS = 5


def growing_strings(seed: int, until: int) -> Iterator[str]:
    """Strings to learn from: of at most ``FIRST_DIGITS`` at first, and of all lengths after ``until`` of them."""
    rng = random.Random(seed)
    for i in count():
        yield string(rng, min(MOST_DIGITS, FIRST_DIGITS + (MOST_DIGITS - FIRST_DIGITS) * i // until))


def answered(digits: str) -> str:
    return digits + ASKED + digits[::-1] + ENDED


def exact_share(answer: Callable[[str], str], number: int = MEASURED) -> float:
    """The share of strings that ``answer(prompt)`` reverses without a mistake, to the end of the line and not beyond."""
    asked = measured(number)
    return sum(is_exact(digits, answer(digits + ASKED)) for digits in asked) / len(asked)

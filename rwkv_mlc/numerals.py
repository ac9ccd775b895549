"""Numbers as they are written in arguments and settings: with the digits 0 to 9, a sign, and a point or an exponent.

Python's ``int`` and ``float`` also take digits of other scripts and underscores between them, which nobody means."""

from __future__ import annotations

import re

INTEGER = re.compile(r"[+-]?[0-9]+")
NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|nan|[+-]?inf")
BLANKS = " \t"


def integer(text: str) -> int:
    """Raises ValueError for anything else, and for more digits than Python reads."""
    return int(_matching(INTEGER, text))


def number(text: str) -> float:
    """Raises ValueError for anything else. ``nan`` and ``inf`` are none, which whoever has bounds says."""
    return float(_matching(NUMBER, text))


def _matching(pattern: re.Pattern[str], text: str) -> str:
    if not pattern.fullmatch(text.strip(BLANKS)):
        raise ValueError(f"no number of the digits 0 to 9: {text[:40]}")
    return text

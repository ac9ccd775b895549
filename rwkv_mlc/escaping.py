"""Text of unknown origin, made harmless to a terminal and short enough to be read."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What moves a cursor, changes a color, title or the direction of writing, or is half a character."""

LAYOUT = "\t\n"
LONG_WORD = re.compile(r"[^\s/]{256,}")  # longer than the name of any file
NAME_LENGTH = 100  # characters of a name in a sentence
PROBLEMS = 32  # of one kind in a sentence: a block has fewer tensors
MESSAGE_LENGTH = 6000  # characters of a sentence: a path may have 4096


def escaped(text: str, keep: str = "") -> str:
    r"""The text with ``\u001b`` for an escape character and so on, which JSON reads back; ``keep`` stays as it is."""
    return CONTROL.sub(lambda match: match[0] if match[0] in keep else f"\\u{ord(match[0]):04x}", text)


def escaped_values(data: Any) -> Any:
    """JSON data with every string in it ``escaped``."""
    if isinstance(data, str):
        return escaped(data, LAYOUT)
    if isinstance(data, dict):
        return {escaped_values(key): escaped_values(value) for key, value in data.items()}
    return [escaped_values(value) for value in data] if isinstance(data, list | tuple) else data


def shortened(text: str, length: int = NAME_LENGTH) -> str:
    """The text, with "..." for the middle of a longer one."""
    return text if len(text) <= length else f"{text[: length // 2]}...{text[-length // 2 :]}"


def quoted(value: object) -> str:
    """What was given, as it is written in Python, shortened. An integer may have more digits than Python writes."""
    if isinstance(value, int) and value.bit_length() > 4 * NAME_LENGTH:
        return f"an integer of {value.bit_length():,} bits"
    return shortened(repr(value))


def with_short_words(message: str) -> str:
    """A sentence with each word that is longer than a file's name shortened, whoever has quoted it."""
    return LONG_WORD.sub(lambda word: shortened(word[0]), message)


def listed(names: Collection[str], separator: str = ", ", most: int = 8) -> str:
    """The first names, each shortened, and how many more there are."""
    shown = [shortened(name) for name, _ in zip(names, range(most))]
    more = f"{separator}and {len(names) - most:,} more" if len(names) > most else ""
    return separator.join(shown) + more


def listed_problems(problems: Collection[str]) -> str:
    """Problems that begin with what kind they are, such as ``missing x`` and ``unknown y``: the first of every kind."""
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        word = problem.partition(" ")[0]
        kinds.setdefault(word if word in ("missing", "unknown") else "", []).append(problem)
    return "; ".join(listed(kind, "; ", PROBLEMS) for kind in kinds.values())

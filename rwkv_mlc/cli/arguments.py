"""Types of arguments, each of which refuses what no command could use."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

from .. import numerals
from ..escaping import quoted
from ..regular_files import check_name

LARGEST = (1 << 31) - 1


def named_path(text: str) -> Path:
    """A path that a file system takes."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty; this folder is .")
    return Path(path_or_name(text))


def path_or_name(text: str) -> str:
    """The same for what may also be the name of something else."""
    try:
        check_name(Path(text))
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{error.strerror}: {text[:40]}...") from None
    return text


def prompt(text: str) -> str:
    """Text, without the byte order mark of a file that a shell has put here."""
    return text.removeprefix("\ufeff")


def integer(least: int = 0, most: int = LARGEST) -> Callable[[str], int]:
    """An integer from ``least`` to ``most``."""

    def parse(text: str) -> int:
        try:
            number = numerals.integer(text)
        except ValueError:
            number = None
        if number is None or not least <= number <= most:
            raise argparse.ArgumentTypeError(
                f"expected an integer of at least {least} and at most {most}, found {quoted(text)}"
            )
        return number

    return parse


def integers(what: str, least: int = 0, most: int = LARGEST) -> Callable[[str], list[int]]:
    """Integers with commas between them."""
    number = integer(least, most)

    def parse(text: str) -> list[int]:
        try:
            return [number(part) for part in text.split(",")]
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentTypeError(f"expected {what} with commas between them: {error}") from None

    return parse


def positive_number(text: str) -> float:
    """A finite number above 0."""
    try:
        number = numerals.number(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {quoted(text)}")
    return number

"""The text that models are measured on, and its windows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..data_files import ROOT
from ..engine.sequence import Tokens
from ..errors import UserError
from ..regular_files import read_bytes
from ..text_encoding import in_utf8
from .scorer import Request, Scorer

DEFAULT_TEXT, DEFAULT_QUESTIONS = ROOT / "evaluation" / "text.txt", ROOT / "evaluation" / "questions.txt"
LARGEST_FILE = 1 << 30
LEAST = 64  # tokens of a text


def read_text(path: Path) -> bytes:
    """Raises UserError for a file that cannot be read, and for one of nothing but white space."""
    try:
        text = in_utf8(read_bytes(path, LARGEST_FILE), path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    if not text.strip():
        raise UserError(f"{path} holds no text; name a file with some, --text FILE.")
    return text


def read_questions(path: Path) -> list[str]:
    """One a line. Raises UserError for a file that cannot be read, or has none."""
    return [line for line in read_text(path).decode("utf-8", "replace").splitlines() if line.strip()]


def encode(scorer: Scorer, text: bytes) -> Tokens:
    """Raises UserError for a text that the vocabulary cannot spell, or that is too short to say anything."""
    tokens = scorer.tokenizer.encode(text)
    if len(tokens) < LEAST:
        raise UserError(
            f"The text has {len(tokens)} tokens, expected at least {LEAST}; name a longer one, --text FILE."
        )
    return tokens


def windows(tokens: Tokens, begin: int, length: int, stride: int) -> list[Request]:
    """Windows of ``length`` tokens, each ``stride`` after the one before it, in which what an earlier one has had is context:
    every token is a target once. Where there is no context the token ``begin`` stands for it.

    Raises UserError for a stride that leaves tokens out."""
    if not 1 <= stride <= length:
        raise UserError(f"--stride must be between 1 and --ctx, {length}, not {stride}.")
    found = [Request([begin], tokens[:length])]
    for end in range(length + stride, len(tokens) + stride, stride):
        first = end - stride
        found.append(Request(tokens[end - length : first] or [begin], tokens[first:end]))
    return found


def pieces(tokens: Tokens, length: int) -> Sequence[Tokens]:
    """All tokens, in pieces of ``length``; the last one is shorter, or left out where it has fewer than ``LEAST``."""
    found = [tokens[start : start + length] for start in range(0, len(tokens), length)]
    return found[:-1] if len(found) > 1 and len(found[-1]) < LEAST else found

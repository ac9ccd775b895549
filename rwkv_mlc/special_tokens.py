"""Tokens that stand for no text of their own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SpecialTokens:
    """Ids that a configuration names: those that ``end`` a text, what it may ``begin`` with and what is put for ``padding``;
    ``end_text`` is the text of the token that ends one, where only that is said."""

    end: tuple[int, ...] = ()
    end_text: str | None = None
    begin: int | None = None
    padding: int | None = None

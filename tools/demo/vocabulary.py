"""A small vocabulary in the World format: every byte, then the pieces that a text repeats most."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

PIECES = re.compile(rb"\n\n| ?[A-Za-z]+|'s|, |.", re.DOTALL)
MIN_COUNT = 5


class Vocabulary:
    """Id 0 ends a text, ids 1 to 256 are the bytes, the rest are ``pieces`` by length and then by value."""

    def __init__(self, pieces: Iterable[bytes]):
        self.tokens = [b"", *(bytes([byte]) for byte in range(256)), *sorted(set(pieces), key=lambda p: (len(p), p))]
        self._ids = {token: i for i, token in enumerate(self.tokens) if token}
        self._longest = max(map(len, self.tokens))

    @classmethod
    def from_text(cls, text: str, size: int) -> Vocabulary:
        """At most ``size`` tokens: the pieces of two bytes and more that save the most bytes in ``text``."""
        counts = Counter(piece for piece in PIECES.findall(text.encode()) if len(piece) > 1)
        frequent = [piece for piece, count in counts.items() if count >= MIN_COUNT]
        frequent.sort(key=lambda piece: (-counts[piece] * (len(piece) - 1), piece))
        return cls(frequent[: size - 257])

    def encode(self, text: str) -> list[int]:
        """Greedy longest match, as the World tokenizer encodes."""
        data, ids, start = text.encode(), [], 0
        while start < len(data):
            end = min(start + self._longest, len(data))
            while data[start:end] not in self._ids:
                end -= 1
            ids.append(self._ids[data[start:end]])
            start = end
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(self.tokens[i] for i in ids).decode(errors="replace")

    def save(self, path: Path) -> None:
        """Write lines of ``<id> <python literal> <byte length>``; tokens that are not UTF-8 are bytes literals."""
        lines = []
        for i, token in enumerate(self.tokens[1:], start=1):
            try:
                literal = repr(token.decode())
            except UnicodeDecodeError:
                literal = repr(token)
            lines.append(f"{i} {literal} {len(token)}\n")
        path.write_text("".join(lines), encoding="utf-8")

"""Bytes of tokens to text as it becomes certain: stop strings and UTF-8 across token borders."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Turns the bytes of an answer, in pieces of any size, into text, and ends it before the first stop string.

    The stop string that is complete first ends the text, the longest one if several end with the same byte; how the
    bytes were cut plays no part. ``stopped`` says whether one was met. ``released`` holds the bytes of the text
    returned so far, and those of an incomplete character at its end.
    """

    def __init__(self, stop: Sequence[str] = ()):
        self.stopped = False
        self.released = bytearray()
        self._stops = [text.encode("utf-8") for text in stop]
        self._pending = b""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def held(self) -> bytes:
        """Bytes that may be the beginning of a stop string, after ``released``."""
        return self._pending

    def push(self, data: bytes) -> str:
        """The text that ``data`` makes certain. Held back are the start of what may become a stop string and an
        incomplete character; bytes that can no longer become a character read U+FFFD."""
        if self.stopped:
            return ""
        self._pending += data
        ends = [(start + len(stop), start) for stop in self._stops if (start := self._pending.find(stop)) >= 0]
        if ends:
            self.stopped = True
            return self._release(min(ends)[1], final=True)
        return self._release(len(self._pending) - self._possible_stop())

    def finish(self) -> str:
        """The rest of the text, when no more bytes follow."""
        return "" if self.stopped else self._release(len(self._pending), final=True)

    def _possible_stop(self) -> int:
        """How many of the last pending bytes are the start of a stop string."""
        longest = max(map(len, self._stops), default=1) - 1
        tails = range(min(longest, len(self._pending)), 0, -1)
        return next((n for n in tails if any(stop.startswith(self._pending[-n:]) for stop in self._stops)), 0)

    def _release(self, count: int, final: bool = False) -> str:
        data, self._pending = self._pending[:count], self._pending[count:]
        self.released += data
        return self._decoder.decode(data, final)

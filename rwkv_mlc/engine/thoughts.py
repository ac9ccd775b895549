"""What a model thinks before it answers: told apart from the answer as the text comes, and left out of later turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..schema import Thinking


class Thought(str):
    """A piece of text that belongs to the thoughts before an answer."""

    __slots__ = ()


@dataclass(frozen=True)
class ThinkingTurn:
    """An answer that begins with thoughts, between ``tags``, the first characters of which the prompt ends in: ``opening``.

    Later turns do not hold the thoughts: they have ``prompt`` in the place of the answer's prompt, and ``told(answer)``, the
    bytes of the answer and what closes it."""

    tags: Thinking
    opening: str
    prompt: str
    told: Callable[[str], bytes]


class ThoughtStream:
    """Divides the text of an answer, in pieces of any size, into thoughts and what is said after them.

    Neither has the tags, the thoughts have no white space at their ends and the answer none at its beginning. A text that does
    not begin with thoughts, when what the prompt ended in is put before it, is an answer as a whole."""

    def __init__(self, tags: Thinking, opening: str):
        self._tags, self._pending = tags, opening.lstrip()
        self._opening = self._pending
        self._step: Callable[[bool], str] = self._begin

    def push(self, text: str) -> list[str]:
        """The pieces, thoughts and others, that ``text`` makes certain."""
        self._pending += text
        return self._divide(final=False)

    def finish(self) -> list[str]:
        """The rest, when no more text follows."""
        return self._divide(final=True)

    def _divide(self, final: bool) -> list[str]:
        pieces, step = [], None
        while step != self._step:
            step = self._step
            pieces.append(step(final))
        return list(filter(None, pieces))

    def _begin(self, final: bool) -> str:
        text = self._pending.lstrip()
        if text.startswith(self._tags.begin):
            self._pending, self._step = text.removeprefix(self._tags.begin), self._before_thoughts
        elif final and self._pending == self._opening:
            self._pending = ""
        elif final or not self._tags.begin.startswith(text):
            self._step = self._answer
        return ""

    def _before_thoughts(self, final: bool) -> str:
        self._pending = self._pending.lstrip()
        if self._pending:
            self._step = self._think
        return ""

    def _think(self, final: bool) -> str:
        thought, end, rest = self._pending.partition(self._tags.end)
        if end:
            self._pending, self._step = rest, self._before_answer
            return Thought(thought.rstrip())
        held = 0 if final else _begun(thought, self._tags.end)
        certain = thought[: len(thought) - held].rstrip()
        self._pending = "" if final else thought[len(certain) :]
        return Thought(certain)

    def _before_answer(self, final: bool) -> str:
        self._pending = self._pending.lstrip()
        if self._pending:
            self._step = self._answer
        return ""

    def _answer(self, final: bool) -> str:
        text, self._pending = self._pending, ""
        return text


def _begun(text: str, tag: str) -> int:
    """How many of the last characters are the beginning of a tag."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if tag.startswith(text[-n:])), 0)

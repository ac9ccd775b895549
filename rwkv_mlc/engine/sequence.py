"""One text: ids that a state slot reads, and the answer that goes on from them token by token.

A ``Scheduler`` moves sequences: it has their pending ids read, and asks for the next where none is left.
"""

from __future__ import annotations

from collections import abc
from dataclasses import dataclass
from itertools import takewhile
from typing import TypeAlias

import numpy as np

from ..tokenizer import Tokenizer
from .integers import integers
from .sampler import Counts, Sampler, SamplingParams
from .state import Logits, State
from .stream import TextStream
from .thoughts import ThinkingTurn, Thought, ThoughtStream

Tokens: TypeAlias = abc.Sequence[int]


class Reading:
    """Ids for a state slot to read; it is finished once it has.

    ``prompt`` are the ids as given, ``pending`` those still to be read, ``read`` counts the others. ``last`` are the logits
    after the last one read, None before. ``finish_reason`` is None until the end, then "read", or "error" where a call for
    it raised. The ``Scheduler`` that runs it knows its slot."""

    def __init__(self, prompt: Tokens):
        """Raises UserError for what are no integers."""
        self.prompt = prompt
        self.pending = integers(prompt, "Token ids")
        self.read = 0
        self.last: Logits | None = None
        self.finish_reason: str | None = None

    @property
    def logits(self) -> np.ndarray:
        """Those after the last id read, float32 [V]; empty before."""
        return np.empty(0, np.float32) if self.last is None else self.last.array()

    @property
    def readable(self) -> list[int]:
        """The pending ids that one call may read."""
        return self.pending

    @property
    def writes(self) -> bool:
        """Whether what is pending are tokens chosen, and no prompt."""
        return False

    def advance(self, count: int, logits: Logits) -> None:
        """Note that the slot has read the first ``count`` pending ids, and the logits after them."""
        del self.pending[:count]
        self.read += count
        self.last = logits

    def finish(self, reason: str) -> None:
        """End, and hold no longer what serves those that run: of the logits of the last call, which has those of others
        too, its own."""
        self.finish_reason = reason
        if self.last:
            self.last = self.last.alone()


@dataclass(frozen=True)
class Earlier:
    """What a slot held when it had read the prompt and so many of the tokens chosen; ``state`` is None before the prompt."""

    state: State | None = None
    tokens: int = 0


@dataclass
class Retold:
    """What a slot is to have read when an answer with thoughts is closed: the ``prompt`` as later turns have it and
    ``told(answer)``. The answer's own prompt begins with the first ``shared`` ids of the former; ``state`` is what the slot
    held after those, None before."""

    prompt: Tokens
    shared: int
    told: abc.Callable[[str], bytes]
    state: State | None = None


def nothing(text: bytes) -> bytes:
    return b""


class Sequence(Reading):
    """A prompt and its answer.

    ``tokens`` are the ids chosen, ``fed`` those of them that the slot has read, ``text`` is what is certain of the answer, and
    ``reasoning`` of the thoughts before it, which the text has not;
    ``finish_reason`` is "stop" (end of text or a stop string), "length", "error" or None (not finished); ``seed`` is the one
    drawn from; ``counts`` are those that an answer goes on from, and when it is closed, those that it leaves.

    A slot reads a token before it is known whether a stop string begins in it, and does not read the last one. ``close`` has
    it read the prompt, the text, and ``closing(text)``, what is to stand after that: neither more nor less. Where the answer
    begins with thoughts, it has the slot read what later turns have of them instead. Where ``keeps`` is True, which is
    where somebody goes on from the slot, ``remember`` keeps what that needs."""

    def __init__(
        self,
        prompt: Tokens,
        params: SamplingParams,
        tokenizer: Tokenizer,
        valid_ids: np.ndarray,
        end_ids: abc.Set[int],
        closing: abc.Callable[[bytes], bytes] = nothing,
        keeps: bool = True,
        counts: Counts = Counts(),
        thinking: ThinkingTurn | None = None,
    ):
        """``valid_ids``, bool [V], is False for ids never to be chosen; one of ``end_ids`` ends the answer and is no text
        of it. ``counts`` are of what it goes on from. ``thinking`` says how the answer begins with thoughts."""
        super().__init__(prompt)
        self.params, self.keeps, self.closed = params, keeps, False
        self.tokens: list[int] = []
        self.text = self.reasoning = ""
        self.counts, self.sampler = counts, Sampler(params, valid_ids, counts)
        self._stream, self._thoughts, self._retold = TextStream(params.stop), None, None
        self._tokenizer, self._end_ids, self._closing = tokenizer, end_ids, closing
        self._fed, self._earlier = 0, Earlier()
        self.seed = self.sampler.seed
        if thinking:
            self._thoughts = ThoughtStream(thinking.tags, thinking.opening)
            later = tokenizer.encode(thinking.prompt)
            same = takewhile(lambda pair: pair[0] == pair[1], zip(self.pending[:-1], later))
            self._retold = Retold(later, sum(1 for _ in same), thinking.told)

    @property
    def fed(self) -> list[int]:
        return self.tokens[: self._fed]

    @property
    def released(self) -> bytes:
        """Bytes of the thoughts and of ``text``, before the stop string."""
        return bytes(self._stream.released)

    @property
    def readable(self) -> list[int]:
        """Up to where later turns part from this one, which ``remember`` has to see."""
        if self._retold and self.keeps and not self.closed and self.read < self._retold.shared:
            return self.pending[: self._retold.shared - self.read]
        return self.pending

    @property
    def writes(self) -> bool:
        return self.read >= len(self.prompt) and not self.closed

    def advance(self, count: int, logits: Logits) -> None:
        if self.writes:
            self._fed += count
        super().advance(count, logits)

    def take(self, token: int) -> list[str]:
        """Go on with a token, which becomes pending unless it is the last; returns the text that it makes certain, in one piece
        or none, or of which each is a ``Thought`` or not."""
        self.tokens.append(token)
        ended = token in self._end_ids
        text = "" if ended else self._stream.push(self._tokenizer.token_bytes(token))
        if ended or self._stream.stopped:
            self.finish("stop")
        elif len(self.tokens) >= self.params.max_tokens:
            self.finish("length")
        else:
            self.pending.append(token)
        if self.finish_reason:
            text += self._stream.finish()
            del self.sampler  # of the size of the logits
        pieces = self._divided(text)
        self.reasoning += "".join(piece for piece in pieces if isinstance(piece, Thought))
        self.text += "".join(piece for piece in pieces if not isinstance(piece, Thought))
        return pieces

    def _divided(self, text: str) -> list[str]:
        if self._thoughts is None:
            return [text] if text else []
        return self._thoughts.push(text) + (self._thoughts.finish() if self.finish_reason else [])

    def remember(self, state: State, slot: int) -> None:
        """Keep what the slot holds where later turns part from this one; and where the token that it reads next may belong to
        a stop string and what it has read does not."""
        if self._retold:
            if self.read == self._retold.shared and self._retold.state is None:
                self._retold.state = state.copy_of_slot(slot)
            return
        held = self._stream.held
        if not held or not self.writes or not self.pending:
            return
        after = self._closing(self.released)
        read = held[: max(len(held) - len(self._tokenizer.token_bytes(self.pending[0])), 0)]
        if not after.startswith(held) and after.startswith(read):
            if self._earlier.state is None:
                self._earlier = Earlier(state.copy_of_slot(slot), self._fed)
            else:
                state.copy_slot(slot, self._earlier.state, 0)
                self._earlier = Earlier(self._earlier.state, self._fed)

    def close(self) -> Earlier | None:
        """Write no more. What its slot lacks of the text and of what closes it becomes pending; where the slot has read more
        than that, it lacks it from what it held ``Earlier``, which is returned.

        Tokens that were shown whole are read as they were chosen, unless something closes the text: both are encoded as one
        then, as in the texts that models learn from. Raises UserError where the vocabulary cannot spell a part of a token."""
        if retold := self._retold:
            begun = retold.shared if retold.state else self.read
            self.pending = [*retold.prompt[begun:], *self._tokenizer.spell(retold.told(self.text))]
            self.closed, self._fed, self.counts, self._retold = True, 0, Counts(), None
            return Earlier(retold.state) if retold.state else None
        decode, text = self._tokenizer.decode_bytes, self.released
        goal = text + self._closing(text)
        earlier = None if goal.startswith(decode(self.fed)) else self._earlier
        if earlier:
            self._fed = earlier.tokens
        begun = len(decode(self.fed))
        whole = self._fed
        if goal == text:
            while whole < len(self.tokens) and self.tokens[whole] not in self._end_ids:
                end = begun + len(self._tokenizer.token_bytes(self.tokens[whole]))
                if end > len(text):
                    break
                begun, whole = end, whole + 1
            self.counts = self.counts.after(self.tokens[:whole], self.params.penalty_decay)
        else:
            self.counts = Counts()
        rest = goal[begun:]
        again = earlier is not None and earlier.state is None
        prompt = list(map(int, self.prompt)) if again else self.pending[: max(len(self.prompt) - self.read, 0)]
        self.pending = prompt + self.tokens[self._fed : whole] + (self._tokenizer.spell(rest) if rest else [])
        self.closed, self._fed, self._earlier = True, whole, Earlier()
        return earlier

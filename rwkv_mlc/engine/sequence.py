"""One text: ids that a state slot reads, and the answer that goes on from them token by token.

A ``Scheduler`` moves sequences: it has their pending ids read, and asks for the next where none is left.
"""

from __future__ import annotations

from collections import abc
from numbers import Integral
from typing import TypeAlias

import numpy as np

from ..errors import UserError
from ..escaping import shortened
from ..tokenizer import Tokenizer
from .choice import Logits
from .sampler import Sampler, SamplingParams
from .stream import TextStream

Tokens: TypeAlias = abc.Sequence[int]


class Reading:
    """Ids for a state slot to read; it is finished once it has.

    ``prompt`` are the ids as given, ``pending`` those still to be read, ``read`` counts the others. ``last`` are the logits
    after the last one read, None before. ``finish_reason`` is None until the end, then "read", or "error" where a call for
    it raised. The ``Scheduler`` that runs it knows its slot."""

    def __init__(self, prompt: Tokens):
        """Raises UserError for what are no integers."""
        self.prompt = prompt
        tokens = prompt.tolist() if isinstance(prompt, np.ndarray) else prompt
        if foreign := [token for token in tokens if not isinstance(token, Integral) or isinstance(token, bool)]:
            raise UserError(f"Token ids are integers, found {shortened(repr(foreign[0]))}.")
        self.pending: list[int] = list(map(int, tokens))
        self.read = 0
        self.last: Logits | None = None
        self.finish_reason: str | None = None

    @property
    def logits(self) -> np.ndarray:
        """Those after the last id read, float32 [V]; empty before."""
        return np.empty(0, np.float32) if self.last is None else self.last.array()

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


class Sequence(Reading):
    """A prompt and its answer.

    ``tokens`` are the ids chosen, ``fed`` those of them that the slot has read, ``text`` is what is certain of the answer;
    ``finish_reason`` is "stop" (end of text or a stop string), "length", "error" or None (not finished); ``seed`` is the one
    drawn from."""

    def __init__(
        self,
        prompt: Tokens,
        params: SamplingParams,
        tokenizer: Tokenizer,
        valid_ids: np.ndarray,
        end_ids: abc.Set[int],
    ):
        """``valid_ids``, bool [V], is False for ids never to be chosen; one of ``end_ids`` ends the answer and is no text
        of it."""
        super().__init__(prompt)
        self.params = params
        self.tokens: list[int] = []
        self.text = ""
        self.sampler = Sampler(params, valid_ids)
        self._stream = TextStream(params.stop)
        self._token_bytes, self._end_ids = tokenizer.token_bytes, end_ids
        self.seed = self.sampler.seed

    @property
    def fed(self) -> list[int]:
        return self.tokens[: max(self.read - len(self.prompt), 0)]

    @property
    def released(self) -> bytes:
        """Bytes of ``text``, before the stop string."""
        return bytes(self._stream.released)

    def take(self, token: int) -> str:
        """Go on with a token, which becomes pending unless it is the last; returns the text that it makes certain."""
        self.tokens.append(token)
        ended = token in self._end_ids
        text = "" if ended else self._stream.push(self._token_bytes(token))
        if ended or self._stream.stopped:
            self.finish("stop")
        elif len(self.tokens) >= self.params.max_tokens:
            self.finish("length")
        else:
            self.pending.append(token)
        if self.finish_reason:
            text += self._stream.finish()
            del self.sampler  # of the size of the logits
        self.text += text
        return text

"""Greedy answers of several texts at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..engine.sequence import Tokens
from .scorer import Scorer, calls, check_finite


@dataclass
class Answer:
    """``tokens`` without the one that ended it, and whether one did, or a stop string."""

    tokens: list[int]
    ended: bool = False


def answer(
    scorer: Scorer, prompts: Sequence[Tokens], most: Sequence[int], stop: Sequence[str] = ()
) -> Iterator[Answer]:
    """The likeliest next token, again and again, at most ``most[i]`` of them for prompt i, until one ends the answer or its
    text has one of the ``stop`` strings. Raises UserError for logits that are not finite."""
    for first in range(0, len(prompts), scorer.slots):
        batch = slice(first, first + scorer.slots)
        yield from _answer_together(scorer, prompts[batch], most[batch], [text.encode("utf-8") for text in stop])


def _answer_together(
    scorer: Scorer, prompts: Sequence[Tokens], most: Sequence[int], stop: Sequence[bytes]
) -> list[Answer]:
    valid = scorer.tokenizer.valid_ids(scorer.vocab_size)
    valid[list(scorer.ends)] = True
    read, answers = scorer.start(len(prompts)), [Answer([]) for _ in prompts]
    last: dict[int, np.ndarray] = {}
    for parts in calls(prompts, scorer.chunk):
        last |= dict(zip(parts, read(parts, False)))
    while last:
        going: dict[int, Tokens] = {}
        for text, logits in last.items():
            scores = np.where(valid, logits, -np.inf)
            check_finite(scores.max())
            token, found = int(scores.argmax()), answers[text]
            if token in scorer.ends:
                found.ended = True
                continue
            found.tokens.append(token)
            written = scorer.tokenizer.decode_bytes(found.tokens) if stop else b""
            found.ended = any(end in written for end in stop)
            if not found.ended and len(found.tokens) < most[text]:
                going[text] = [token]
        last = dict(zip(going, read(going, False))) if going else {}
    return answers

"""Tokens in, log-probabilities out: what every task asks of a model, whatever runs it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ..engine.sequence import Tokens
from ..engine.templates import Template
from ..errors import UserError
from ..tokenizer import Tokenizer

Read: TypeAlias = Callable[[Mapping[int, Tokens], bool], np.ndarray]
"""Feeds some of the texts that were begun, by their number, the tokens that come next in them. Returns the logits after every
token where the flag says so, else after the last of each text, [rows, V], text by text in the order of the mapping."""


@dataclass(frozen=True)
class Scorer(ABC):
    """A model that reads texts.

    ``name`` is the model's, ``runner`` what runs it ("llvm", "reference", "rwkv", "transformers"); ``begin`` is the token that
    a text begins with where nothing stands before it, ``ends`` are those that end an answer. ``quantization`` and
    ``bits_per_weight`` say how the weights are stored, where that is known. A call reads at most ``chunk`` tokens, or ``rows``
    where the logits after each are wanted, of at most ``slots`` texts."""

    name: str
    runner: str
    tokenizer: Tokenizer
    vocab_size: int
    begin: int
    ends: frozenset[int]
    template: Template
    quantization: str | None
    bits_per_weight: float | None
    slots: int
    chunk: int
    rows: int

    def to_dict(self) -> dict[str, Any]:
        """What tells it from others, as JSON."""
        names = ("name", "runner", "quantization", "bits_per_weight")
        return {name: getattr(self, name) for name in names}

    @abstractmethod
    def start(self, texts: int) -> Read:
        """Begin so many texts, at most ``slots``, each in the state before the first token."""


class Request(NamedTuple):
    """How likely ``target`` is after ``context``; both have at least one token."""

    context: Tokens
    target: Tokens


class Score(NamedTuple):
    """Of every token of a target: its log-probability (float64, nats), and whether it is the likeliest one (bool)."""

    log_probabilities: np.ndarray
    likeliest: np.ndarray


def score(scorer: Scorer, requests: Iterable[Request]) -> Iterator[Score]:
    """The scores in the order of the requests, which are read as far as ``slots`` goes at a time.

    Texts lie one after the other in a call, so that every call is full whatever their lengths are, and of a context's tokens
    only the last has logits. Raises UserError for logits that are not finite."""
    waiting = iter(requests)
    while batch := list(islice(waiting, scorer.slots)):
        yield from _score_together(scorer, batch)


def _score_together(scorer: Scorer, batch: Sequence[Request]) -> list[Score]:
    read = scorer.start(len(batch))
    first: dict[int, np.ndarray] = {}
    for parts in calls([request.context for request in batch], scorer.chunk):
        first |= dict(zip(parts, read(parts, False)))
    found = [[log_probabilities(first[text][None], request.target[:1])] for text, request in enumerate(batch)]
    done = [1] * len(batch)
    for parts in calls([request.target[:-1] for request in batch], scorer.rows):
        logits, start = read(parts, True), 0
        for text, part in parts.items():
            following = batch[text].target[done[text] : done[text] + len(part)]
            found[text].append(log_probabilities(logits[start : start + len(part)], following))
            done[text], start = done[text] + len(part), start + len(part)
    return [Score(*map(np.concatenate, zip(*pieces))) for pieces in found]


def calls(texts: Sequence[Tokens], most: int) -> Iterator[dict[int, Tokens]]:
    """All tokens of the texts in calls of ``most`` together: the number of a text and what of it comes next."""
    parts: dict[int, Tokens] = {}
    room = most
    for text, tokens in enumerate(texts):
        start = 0
        while start < len(tokens):
            part = tokens[start : start + room]
            parts[text] = part
            start, room = start + len(part), room - len(part)
            if not room:
                yield parts
                parts, room = {}, most
    if parts:
        yield parts


def log_probabilities(logits: np.ndarray, targets: Tokens) -> Score:
    """Of token ``targets[i]`` after row i of ``logits`` [n, V]. Raises UserError where these are not finite."""
    rows, ids = np.arange(len(logits)), np.asarray(targets)
    largest = logits.max(axis=1, keepdims=True)
    check_finite(largest)
    totals = np.exp(logits - largest).sum(axis=1)
    chosen = (logits[rows, ids] - largest[:, 0]).astype(np.float64)
    return Score(chosen - np.log(totals.astype(np.float64)), logits.argmax(axis=1) == ids)


def check_finite(largest: np.ndarray) -> None:
    """Raises UserError unless the largest logits of all rows are finite numbers, which they are not where any is NaN."""
    if not np.isfinite(largest).all():
        raise UserError(
            "The model's logits are not finite, as happens when 16-bit activations overflow; build it with a quantization of "
            "32-bit activations, such as q4f32_1 or q0f32."
        )

"""What a scheme, a target or another runner costs: two models of one vocabulary on the same tokens.

Windows begin in the state before the first token, and what is found of a token belongs to how many the state had read: errors
of weights grow with the state's age, which a perplexity of short texts does not show."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise, takewhile
from typing import Any

import numpy as np

from ..engine.sequence import Tokens
from ..errors import UserError
from .answers import Answer, answer
from .metric import Metric, blocks, plain
from .perplexity import BLOCK
from .scorer import Scorer, calls, check_finite
from .text import encode, pieces

FIRST_BUCKET = 64  # tokens


@dataclass(frozen=True, eq=False)
class Bucket:
    """Tokens before which the state had read ``first`` to ``last`` others, of two models A and B: ``kl``, the mean of
    KL(A || B) in nats, ``agreement``, the share of likeliest tokens that are the same, and both perplexities."""

    first: int
    last: int
    tokens: int
    kl: Metric
    agreement: Metric
    perplexity_a: Metric
    perplexity_b: Metric

    def to_dict(self, seed: int) -> dict[str, Any]:
        """As JSON, with the ratio of the perplexities."""
        figures = {
            "kl": self.kl.figure(seed),
            "agreement": self.agreement.figure(seed),
            "perplexity_a": self.perplexity_a.figure(seed),
            "perplexity_b": self.perplexity_b.figure(seed),
            "perplexity_ratio": self.perplexity_b.against(self.perplexity_a, seed),
        }
        named = {name: plain(figure) for name, figure in figures.items()}
        return {"first": self.first, "last": self.last, "tokens": self.tokens} | named


@dataclass(frozen=True, eq=False)
class Answers:
    """Greedy answers to questions: the share that ``ended`` by themselves, how many tokens they have, how many of them are
    the ``same``, and how many tokens those share before the first that differs (all, where none does)."""

    ended_a: Metric
    ended_b: Metric
    length_a: Metric
    length_b: Metric
    same: Metric
    shared: Metric

    def to_dict(self, seed: int) -> dict[str, Any]:
        """As JSON, with what B has more of than A."""
        named = {field.name: plain(getattr(self, field.name).figure(seed)) for field in fields(self)}
        more = {
            "ended_more": self.ended_b.against(self.ended_a, seed),
            "longer": self.length_b.against(self.length_a, seed),
        }
        return named | {name: plain(figure) for name, figure in more.items()}


def check_comparable(a: Scorer, b: Scorer) -> None:
    """Raises UserError for models of different vocabularies."""
    if a.vocab_size != b.vocab_size or a.tokenizer.definition != b.tokenizer.definition:
        raise UserError(
            f"{a.name} and {b.name} have different vocabularies, of {a.vocab_size} and {b.vocab_size} tokens, so that their "
            "probabilities are of other things; compare models of one vocabulary, or their bits per byte (eval perplexity)."
        )


def compare(
    a: Scorer, b: Scorer, text: bytes, length: int, tell: Callable[[int, int], None] = lambda *_: None
) -> list[Bucket]:
    """All tokens first, then by how many the state had read. ``tell`` gets how many tokens of how many were read.

    Raises UserError for models of different vocabularies, a text that is too short, and logits that are not finite."""
    check_comparable(a, b)
    windows = pieces(encode(a, text), length)
    sizes = [len(window) for window in windows]
    positions = np.concatenate([np.arange(size) for size in sizes])
    found = np.empty((4, len(positions)))
    read = 0
    for logits_a, logits_b, targets in _side_by_side(a, b, windows):
        found[:, read : read + len(targets)] = _of_tokens(logits_a, logits_b, targets)
        read += len(targets)
        tell(read, len(positions))
    edges = [0, *(FIRST_BUCKET << i for i in range(64) if FIRST_BUCKET << i < max(sizes)), max(sizes)]
    ranges = [(0, max(sizes)), *pairwise(edges)]
    return [_bucket(first, end, found, positions) for first, end in (ranges if len(ranges) > 2 else ranges[:1])]


def _side_by_side(
    a: Scorer, b: Scorer, windows: Sequence[Tokens]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The logits of both before each token, and the token, in the order of the text."""
    rows = min(a.rows, b.rows)
    for window in windows:
        read_a, read_b = a.start(1), b.start(1)
        start = 0
        for parts in calls([[a.begin, *window[:-1]]], rows):
            count = len(parts[0])
            yield read_a(parts, True), read_b(parts, True), np.asarray(window[start : start + count])
            start += count


def _of_tokens(logits_a: np.ndarray, logits_b: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """KL(A || B), whether the likeliest is the same, and what A and B lose on the target, in nats: float64 [4, n]."""
    logs_a, logs_b = _log_softmax(logits_a), _log_softmax(logits_b)
    kl = (np.exp(logs_a) * (logs_a - logs_b)).sum(axis=1)
    same = logits_a.argmax(axis=1) == logits_b.argmax(axis=1)
    rows = np.arange(len(targets))
    return np.stack([kl, same, -logs_a[rows, targets], -logs_b[rows, targets]])


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    largest = logits.max(axis=1, keepdims=True)
    check_finite(largest)
    shifted = logits.astype(np.float64) - largest
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _bucket(first: int, end: int, found: np.ndarray, positions: np.ndarray) -> Bucket:
    among = (positions >= first) & (positions < end)
    (kl, sizes), (same, _), (lost_a, _), (lost_b, _) = (blocks(values, BLOCK) for values in found[:, among])
    return Bucket(
        first=first,
        last=end - 1,
        tokens=int(among.sum()),
        kl=Metric("mean", kl, sizes),
        agreement=Metric("share", same, sizes),
        perplexity_a=Metric("perplexity", lost_a, sizes),
        perplexity_b=Metric("perplexity", lost_b, sizes),
    )


def compare_answers(a: Scorer, b: Scorer, questions: Sequence[str], most: int) -> Answers:
    """Both models' greedy answers, of at most ``most`` tokens, to questions in the prompt template of ``a``. Raises UserError
    for a question that the vocabulary cannot spell."""
    template = a.template
    system, mode = template.system_prompt(), template.think_mode(None)
    prompts = [a.tokenizer.encode(system + template.user_turn(question, mode)) for question in questions]
    limits = [most] * len(prompts)
    of_a, of_b = (list(answer(scorer, prompts, limits, template.stop_str)) for scorer in (a, b))
    pairs = list(zip(of_a, of_b))
    return Answers(
        ended_a=Metric.share(np.array([one.ended for one in of_a])),
        ended_b=Metric.share(np.array([one.ended for one in of_b])),
        length_a=_mean([len(one.tokens) for one in of_a]),
        length_b=_mean([len(one.tokens) for one in of_b]),
        same=Metric.share(np.array([one == other for one, other in pairs])),
        shared=_mean([_shared(one, other) for one, other in pairs]),
    )


def _mean(values: Sequence[int]) -> Metric:
    return Metric("mean", np.array(values, np.float64), np.ones(len(values)))


def _shared(a: Answer, b: Answer) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a.tokens, b.tokens)))

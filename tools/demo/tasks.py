"""What the demo models learn: which text, which parts of it count, and what is said of the result."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch.func import functional_call

from . import cards, reversal
from .batch import batch_of
from .corpus import build_vocabulary, contexts, held_out_text
from .generations import Model
from .measure import baselines, perplexity, quantized
from .model import Size
from .vocabulary import Vocabulary


class Task(Protocol):
    """``began`` and ``ended`` are the tokens around an answer; the weights are those of its tokens in the loss and of all
    others."""

    size: Size
    context_length: int
    vocabulary: Vocabulary
    began: int
    ended: int
    answer_weight: float
    other_weight: float

    def rows(self, seed: int, steps: int, batch: int) -> Iterator[list[int]]:
        """Contexts, each with the token after it, for as many ``steps`` of a ``batch`` each."""

    def quality(self, model: Model) -> str: ...

    def card(self, name: str, model: Model, figures: dict[str, float]) -> str: ...

    def write_beside(self, folder: Path) -> None:
        """Write what several models of the task share."""


class VillageTask:
    size = Size()
    context_length = 1024
    answer_weight, other_weight = 3.0, 1.0

    def __init__(self) -> None:
        self.vocabulary = build_vocabulary()
        self.began, self.ended = (self.vocabulary.encode(text)[0] for text in ("Assistant", "\n\n"))

    @cached_property
    def held_out(self) -> str:
        return held_out_text()

    @cached_property
    def held_out_ids(self) -> list[int]:
        return self.vocabulary.encode(self.held_out)

    def rows(self, seed: int, steps: int, batch: int) -> Iterator[list[int]]:
        return contexts(self.vocabulary, seed, self.context_length + 1)

    def quality(self, model: Model) -> str:
        return f"held-out perplexity {perplexity(model, self.held_out_ids):.4f}"

    def card(self, name: str, model: Model, figures: dict[str, float]) -> str:
        ids, seen = self.held_out_ids, contexts(self.vocabulary, int(figures["seed"]), self.context_length)
        unigram, bigram = baselines([i for _ in range(500) for i in next(seen)], ids, len(self.vocabulary.tokens))
        found = [perplexity(model, ids, bits) for bits in (None, 8, 4)]
        return cards.village(name, model, self.vocabulary, len(ids), (unigram, bigram, *found), figures)

    def write_beside(self, folder: Path) -> None:
        (folder / "heldout.txt").write_text(self.held_out, encoding="utf-8")


class ReversalTask:
    size = Size("7", vocab_size=288, num_hidden_layers=2)
    context_length = 2 * reversal.MOST_DIGITS + 2
    answer_weight, other_weight = 1.0, 0.0

    def __init__(self) -> None:
        self.vocabulary = Vocabulary([])
        self.began, self.ended = (self.vocabulary.encode(text)[0] for text in (reversal.ASKED, reversal.ENDED))

    def rows(self, seed: int, steps: int, batch: int) -> Iterator[list[int]]:
        return map(self.row, reversal.growing_strings(seed, steps * batch * 2 // 5))

    def row(self, digits: str) -> list[int]:
        return self.vocabulary.encode(reversal.answered(digits))

    @torch.no_grad()
    def share(self, model: Model, bits: int | None = None) -> float:
        """The share of exact answers. A greedy answer is exact where every token of it is the likeliest after those before."""
        weights = quantized(model, bits) if bits else {}
        tokens, own = batch_of([self.row(digits) for digits in reversal.measured()], model.device)
        logits, _ = functional_call(model, weights, (tokens[:, :-1], model.initial_state(len(tokens))))
        right = logits.argmax(-1) == tokens[:, 1:]
        asked = (tokens == self.began).cumsum(1)[:, :-1] == 0
        return (right | asked | ~own[:, 1:]).all(1).float().mean().item()

    def quality(self, model: Model) -> str:
        return f"exact {self.share(model):.1%}"

    def card(self, name: str, model: Model, figures: dict[str, float]) -> str:
        shares = [self.share(model, bits) for bits in (None, 8, 4)]
        return cards.reversal(name, model, shares, figures)

    def write_beside(self, folder: Path) -> None:
        """There is nothing: the strings follow from their seed."""


TASKS = {"village": VillageTask, "reversal": ReversalTask}

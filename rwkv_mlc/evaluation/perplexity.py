"""Perplexity per token of a text, in windows that slide over it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .metric import Metric, blocks
from .result import Result
from .scorer import Scorer, score
from .text import encode, windows

BLOCK = 64  # tokens of a unit


def perplexity(
    scorer: Scorer, text: bytes, length: int, stride: int, tell: Callable[[int, int], None] = lambda *_: None
) -> Result:
    """``perplexity`` per token and ``bits per byte``, which models of other vocabularies share, with blocks of consecutive
    tokens as their units. A window as long as the text reads it as one stream. ``tell`` gets how many windows of how many were
    read.

    Raises UserError for a text that is too short or that the vocabulary cannot spell, and as ``windows``."""
    tokens = encode(scorer, text)
    requests, lost = windows(tokens, scorer.begin, length, stride), []
    for found in score(scorer, requests):
        lost.append(-found.log_probabilities)
        tell(len(lost), len(requests))
    sums, sizes = blocks(np.concatenate(lost), BLOCK)
    bits = Metric("mean", sums / np.log(2), _lengths(scorer, tokens))
    return Result(
        scorer,
        {"perplexity": Metric("perplexity", sums, sizes), "bits per byte": bits},
        {"tokens": len(tokens), "windows": len(requests)},
    )


def _lengths(scorer: Scorer, tokens: list[int]) -> np.ndarray:
    """Bytes of every block."""
    sizes = np.array([len(scorer.tokenizer.token_bytes(token)) for token in tokens])
    return blocks(sizes, BLOCK)[0]

"""LAMBADA as RWKV's own scripts measure it: how likely a model finds the last word of a passage, and whether it would have
written it.

Of every document the last word, with the space before it, is the target, and the rest the context; both are tokenized by
themselves, and nothing stands before the context. The perplexity is exp(-sum of log p / documents), by word and not by token,
and a document is right where every token of the target is the likeliest (ChatRWKV's ``misc/lambada_test.jsonl``; D. Paperno et
al., "The LAMBADA dataset", 2016)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..text_encoding import lines_in_utf8
from .metric import Metric
from .result import Result
from .scorer import Request, Scorer, score

EVERY = 100  # documents


def read_documents(path: Path, limit: int | None = None) -> list[str]:
    """The first documents of a file of JSON lines, ``{"text": "..."}`` each. Raises UserError for a line that is none, with no
    word before its last one, and for a file without documents."""
    documents: list[str] = []
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(lines_in_utf8(file, str(path)), 1):
                if len(documents) == limit:
                    break
                if line.strip():
                    documents.append(_document(line, f"{path}, line {number}"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    if not documents:
        raise UserError(f'{path} has no documents; expected lines such as {{"text": "A passage and its last word"}}.')
    return documents


def _document(line: bytes, place: str) -> str:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        raise UserError(f'{place} is not JSON; expected {{"text": "A passage and its last word"}}.') from None
    text = found.get("text") if isinstance(found, dict) else None
    if not isinstance(text, str):
        raise UserError(f'{place} has no "text"; expected {{"text": "A passage and its last word"}}.')
    context, space, word = text.rpartition(" ")
    if not (context and space and word):
        raise UserError(f"{place} does not end in a word after a space, which a model could be asked for; correct it.")
    return text


def lambada(
    scorer: Scorer, documents: Sequence[str], tell: Callable[[int, float, float], None] = lambda *_: None
) -> Result:
    """``perplexity`` and ``accuracy``, whose units are the documents. ``tell`` gets how many were read, and both so far.

    Raises UserError for a document that the vocabulary cannot spell, and for logits that are not finite."""

    def request(text: str) -> Request:
        context, _, word = text.rpartition(" ")
        return Request(scorer.tokenizer.encode(context), scorer.tokenizer.encode(f" {word}"))

    lost, right = np.zeros(len(documents)), np.zeros(len(documents))
    for i, found in enumerate(score(scorer, map(request, documents))):
        lost[i], right[i] = -found.log_probabilities.sum(), found.likeliest.all()
        read = i + 1
        tell(read, float(np.exp(min(lost[:read].mean(), 700))), float(right[:read].mean()))
    metrics = {"perplexity": Metric("perplexity", lost, np.ones(len(lost))), "accuracy": Metric.share(right)}
    return Result(scorer, metrics, {"documents": len(documents)})

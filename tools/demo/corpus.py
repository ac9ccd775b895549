"""The texts of the demo models: for training, for the vocabulary and held out, each from its own seed."""

from __future__ import annotations

import random
from collections.abc import Iterator

from .text import Grammar
from .vocabulary import Vocabulary

HELD_OUT_SEED, VOCABULARY_SEED = 1_000_003, 1_000_033
HELD_OUT_BYTES = 32_000
VOCABULARY_DOCUMENTS = 20_000
MAX_TOKENS = 765


def held_out_text() -> str:
    text = ""
    for document in Grammar(HELD_OUT_SEED, held_out=True).documents():
        if len(text) + len(document) > HELD_OUT_BYTES:
            return text
        text += document
    raise AssertionError("the grammar never ends")


def build_vocabulary() -> Vocabulary:
    documents = Grammar(VOCABULARY_SEED).documents()
    return Vocabulary.from_text("".join(next(documents) for _ in range(VOCABULARY_DOCUMENTS)), MAX_TOKENS)


def contexts(vocabulary: Vocabulary, seed: int, length: int) -> Iterator[list[int]]:
    """Token lists of ``length``: whole documents one after the other, half of them after an end of text (id 0)."""
    documents, ends = Grammar(seed).documents(), random.Random(seed)
    while True:
        tokens: list[int] = []
        while len(tokens) < length:
            tokens += [0] * ends.randrange(2) + vocabulary.encode(next(documents))
        yield tokens[:length]

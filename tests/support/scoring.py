"""A model whose logits are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rwkv_mlc.engine.templates import load_template
from rwkv_mlc.evaluation.scorer import Read, Scorer
from rwkv_mlc.tokenizer import load_tokenizer
from support.paths import DEMOS

VOCABULARY = DEMOS / "rwkv-7-reverser" / "rwkv_vocab_demo.txt"


@dataclass(frozen=True)
class KnownScorer(Scorer):
    """``logits(tokens)`` [V] come after the tokens of a text; ``fed`` notes what every call got."""

    logits: Callable[[Sequence[int]], np.ndarray]
    fed: list[tuple[dict[int, list[int]], bool]]

    def start(self, texts: int) -> Read:
        have: list[list[int]] = [[] for _ in range(texts)]

        def read(parts: Mapping[int, Sequence[int]], every: bool) -> np.ndarray:
            self.fed.append(({text: list(part) for text, part in parts.items()}, every))
            rows = []
            for text, part in parts.items():
                for place, token in enumerate(part, 1):
                    have[text].append(token)
                    if every or place == len(part):
                        rows.append(self.logits(have[text]))
            return np.stack(rows)

        return read


def known_scorer(
    logits: Callable[[Sequence[int]], np.ndarray],
    slots: int = 2,
    chunk: int = 8,
    rows: int = 4,
    name: str = "known",
    vocabulary: Path = VOCABULARY,
) -> KnownScorer:
    """Of single bytes, 257 tokens."""
    return KnownScorer(
        name=name,
        runner="known",
        tokenizer=load_tokenizer(vocabulary),
        vocab_size=257,
        begin=0,
        ends=frozenset((0,)),
        template=load_template("rwkv_world"),
        quantization=None,
        bits_per_weight=None,
        slots=slots,
        chunk=chunk,
        rows=rows,
        logits=logits,
        fed=[],
    )

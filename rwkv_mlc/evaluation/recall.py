"""How far back a state remembers: pairs of a name and a number, of which one is asked for after so many others.

A recurrent model has no other memory of a pair than its state, in which every pair that follows is written over it (S. Arora et
al., "Zoology", 2023, measure the same of models trained for it)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np

from .metric import Metric
from .result import Result
from .scorer import Request, Scorer, score

SEED = 1_000_003
DISTANCES = (1, 2, 4, 8, 16, 32, 64)
TRIALS = 32
NAME_LETTERS, DIGITS = 4, 3


def pairs(rng: random.Random, number: int) -> list[tuple[str, str]]:
    """Names, no two alike, and numbers."""
    names: dict[str, str] = {}
    while len(names) < number:
        name = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=NAME_LETTERS))
        names[name] = "".join(rng.choices("0123456789", k=DIGITS))
    return list(names.items())


def trial(rng: random.Random, distance: int) -> tuple[str, str]:
    """A text that asks for the number of the name which ``distance`` pairs back was the last, and the number."""
    known = pairs(rng, distance)
    name, number = known[0]
    return "".join(f"{a}: {b}\n" for a, b in known) + f"{name}:", f" {number}"


def recall(
    scorer: Scorer,
    distances: Sequence[int] = DISTANCES,
    trials: int = TRIALS,
    tell: Callable[[int, int], None] = lambda *_: None,
) -> Result:
    """For each distance the share of trials in which every token of the number is the likeliest, ``exact``, and its
    ``perplexity``, by number and not by token: 1000 is that of who knows nothing but that three digits follow.

    ``tell`` gets how many of how many trials were read. Raises UserError for a vocabulary that cannot spell the texts."""
    rng = random.Random(SEED)
    asked = [trial(rng, distance) for distance in distances for _ in range(trials)]
    encode = scorer.tokenizer.encode
    found = []
    for one in score(scorer, (Request(encode(context), encode(number)) for context, number in asked)):
        found.append((one.likeliest.all(), -one.log_probabilities.sum()))
        tell(len(found), len(asked))
    exact, lost = np.array(found, np.float64).reshape(len(distances), trials, 2).transpose(2, 0, 1)
    metrics = {f"exact after {distance}": Metric.share(exact[i]) for i, distance in enumerate(distances)}
    ones = np.ones(trials)
    metrics |= {
        f"perplexity after {distance}": Metric("perplexity", lost[i], ones) for i, distance in enumerate(distances)
    }
    return Result(scorer, metrics, {"trials": trials})

"""The kernels that choose tokens, and how they are held to the sampler in NumPy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from rwkv_mlc.engine.choice import requests_of
from rwkv_mlc.engine.sampler import Sampler, SamplingParams
from support.kernel_build import call

CASES = [
    {},
    {"temperature": 0},
    {"top_p": 1.0},
    {"top_p": 0.0},
    {"top_p": 1e-6, "temperature": 0.7},
    {"top_p": 0.999, "temperature": 100.0},
    {"top_k": 1, "top_p": 1.0},
    {"top_k": 7},
    {"top_k": 50, "top_p": 1.0, "temperature": 0.01},
    {"top_k": 40, "top_p": 0.5, "temperature": 2.5},
    {"top_k": 2**31 - 1, "top_p": 0.3},
    {"presence_penalty": 0.5, "frequency_penalty": 0.25, "penalty_decay": 0.75},
    {"repetition_penalty": 1.75, "temperature": 0, "penalty_decay": 0.0},
    {"repetition_penalty": 1.25, "presence_penalty": -1.5, "frequency_penalty": 2.0, "top_k": 9, "top_p": 0.95},
]


def logits_of(vocab: int) -> Iterator[tuple[str, np.ndarray]]:
    """Rows of every kind that models give."""
    rng = np.random.default_rng(vocab)
    normal = rng.normal(size=vocab)
    yield "flat", normal * 0.1
    yield "random weights", normal
    yield "peaked", np.where(np.arange(vocab) % 7 == 3, 3 * normal + 9, 2 * normal - 8)
    yield "one stands out", np.where(np.arange(vocab) == vocab // 3, 60.0, normal)
    yield "tied", np.round(normal * 2) / 2
    yield "all tied", np.full(vocab, -2.5)
    yield "impossible ones", np.where((normal > 0.3) | (np.arange(vocab) == min(1, vocab - 1)), normal, -np.inf)
    yield "far apart", normal * 1e30
    yield "wide range", np.exp(normal * 8) * np.sign(normal)


def padding_of(vocab: int) -> np.ndarray:
    """Ids never to be chosen."""
    return np.unique([0, vocab // 2, vocab - 1]).astype(np.int32) if vocab > 3 else np.empty(0, np.int32)


def check_choices(
    function, vocab: int, scratch: tuple[int, ...] = (), steps: int = 1, kinds: Sequence[str] | None = None
) -> None:
    """Rows of all kinds, or of some, with all settings: as many rows in a call as there are settings."""
    padding, valid = padding_of(vocab), np.ones(vocab, bool)
    valid[padding] = False
    for kind, row in logits_of(vocab):
        if kinds and kind not in kinds:
            continue
        logits = np.stack([row, row[::-1]]).astype(np.float32)
        kernel, plain = (
            [Sampler(SamplingParams(seed=i, **case), valid) for i, case in enumerate(CASES)] for _ in range(2)
        )
        for sampler in (*kernel, *plain):
            for token in np.flatnonzero(valid)[[0, -1, 0]]:
                sampler.count(int(token))
        rows = [i % 2 for i in range(len(CASES))]
        for step in range(steps):
            requests, penalties = requests_of(kernel, rows)
            tokens = np.full(len(CASES), -7, np.int32)
            work = [np.full((len(CASES), *scratch), np.nan, np.float32)] * 2 if scratch else []
            given = [logits[None], requests, penalties, np.array([-1, *padding, vocab], np.int32)]
            tokens, *_ = call(function, *given, tokens, *work, written=range(4, 5 + len(work)))
            expected = [sampler.sample(logits[row]) for sampler, row in zip(plain, rows)]
            assert tokens.tolist() == expected, (
                kind,
                step,
                [(CASES[i], a, b) for i, (a, b) in enumerate(zip(tokens, expected)) if a != b],
                row,
            )
            for sampler, token in zip(kernel, tokens.tolist()):
                sampler.count(token)


def check_faults(function, vocab: int, scratch: tuple[int, ...] = ()) -> None:
    """Rows that have no likeliest token, beside one that has."""
    logits = np.zeros((4, vocab), np.float32)
    logits[0, vocab // 2], logits[1, vocab // 3], logits[2] = np.nan, np.inf, -np.inf
    samplers = [Sampler(SamplingParams(seed=1, **case), np.ones(vocab, bool)) for case in CASES[:2] for _ in range(4)]
    requests, penalties = requests_of(samplers, [0, 1, 2, 3] * 2)
    work = [np.full((8, *scratch), np.nan, np.float32)] * 2 if scratch else []
    given = [logits[None], requests, penalties, np.full(1, -1, np.int32), np.zeros(8, np.int32)]
    tokens, *_ = call(function, *given, *work, written=range(4, 5 + len(work)))
    assert tokens.tolist()[:3] == tokens.tolist()[4:7] == [-1, -1, -1]
    assert tokens[3] >= 0 and tokens[7] == 0

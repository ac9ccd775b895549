from __future__ import annotations

import importlib.util
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from rwkv_mlc.engine.sampler import Sampler, SamplingParams, SplitMix64
from rwkv_mlc.errors import UserError

VECTORS = json.loads((Path(__file__).parent / "generation_vectors.json").read_text(encoding="utf-8"))


def all_valid(size: int) -> np.ndarray:
    return np.ones(size, dtype=bool)


def case_logits(case: dict) -> np.ndarray:
    if isinstance(case["logits"], list):
        return np.array(case["logits"], dtype=np.float32)
    spec = case["logits"]
    random = SplitMix64(spec["seed"])
    return np.array([spec["scale"] * (2 * random.uniform() - 1) for _ in range(spec["vocab_size"])], dtype=np.float32)


def case_valid(case: dict, size: int) -> np.ndarray:
    valid = all_valid(size)
    valid[case.get("padding", [])] = False
    return valid


class SlowSampler:
    """docs/generation.md word for word, one token at a time; exp in float64, so that agreement also shows that the
    vectors do not hang on the last bits of a float32 exp."""

    def __init__(self, params: SamplingParams, valid: np.ndarray):
        self.params, self.valid, self.random, self.counts = params, valid, SplitMix64(params.seed or 0), {}

    def sample(self, logits: np.ndarray) -> int:
        params, f32 = self.params, np.float32
        scores = {i: f32(logit) for i, logit in enumerate(logits) if self.valid[i]}
        for token, count in self.counts.items():
            score, repetition = scores[token], f32(params.repetition_penalty)
            score = score / repetition if score > 0 else score * repetition
            scores[token] = score - (f32(params.presence_penalty) + f32(count * f32(params.frequency_penalty)))
        best = max(scores.values())
        if params.temperature == 0:
            token = min(token for token, score in scores.items() if score == best)
        else:
            inverse = f32(1 / params.temperature)
            weight = {
                t: math.floor(2.0**36 * math.exp(-float((best - score) * inverse))) for t, score in scores.items()
            }
            ranked = sorted(scores, key=lambda token: (-weight[token], token))
            if params.top_k:
                ranked = ranked[: params.top_k]
            if params.top_p < 1:
                total, cumulative, count = sum(weight[t] for t in ranked), 0, 0
                while count == 0 or cumulative * 2**32 < round(params.top_p * 2**32) * total:
                    cumulative += weight[ranked[count]]
                    count += 1
                ranked = ranked[:count]
            ranked.sort()
            drawn, total, cumulative = self.random.next() >> 32, sum(weight[t] for t in ranked), 0
            for token in ranked:
                cumulative += weight[token]
                if cumulative > drawn * total // 2**32:
                    break
        self.counts = {t: count * f32(params.penalty_decay) for t, count in self.counts.items()}
        self.counts[token] = self.counts.get(token, f32(0)) + f32(1)
        return token


def test_random_numbers_follow_the_published_generator():
    random = SplitMix64(1234567)
    assert [random.next() for _ in range(3)] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("case", VECTORS["random"], ids=lambda case: case["seed"])
def test_random_vectors(case):
    random, uniform = SplitMix64(int(case["seed"])), SplitMix64(int(case["seed"]))
    assert [str(random.next()) for _ in case["next"]] == case["next"]
    assert [uniform.uniform() for _ in case["uniform"]] == case["uniform"]


@pytest.mark.parametrize("kind", [Sampler, SlowSampler])
@pytest.mark.parametrize("case", VECTORS["sampling"] + VECTORS["sampling_large"], ids=lambda case: str(case["params"]))
def test_sampling_vectors(case, kind):
    logits = case_logits(case)
    steps = case["tokens"][: 3 if kind is SlowSampler and len(logits) > 1000 else None]
    sampler = kind(SamplingParams(**case["params"]), case_valid(case, len(logits)))
    assert [sampler.sample(logits) for _ in steps] == steps


def test_the_vectors_are_what_the_tool_writes():
    path = Path(__file__).parents[2] / "tools" / "make_generation_vectors.py"
    spec = importlib.util.spec_from_file_location("make_generation_vectors", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.vectors() == VECTORS


def test_equals_the_slow_sampler_on_random_settings():
    rng = np.random.default_rng(0)
    for seed in range(150):
        size = int(rng.integers(1, 40))
        # Rounded to float16, many logits tie.
        rows = np.round(rng.normal(size=(12, size)) * 6) / 2
        valid = rng.random(size) < 0.8
        valid[rng.integers(size)] = True
        params = SamplingParams(
            temperature=float(rng.choice([0, 0.3, 1, 2.5])),
            top_p=float(rng.choice([0, 0.2, 0.85, 0.999, 1])),
            top_k=int(rng.choice([0, 1, 3, 50])),
            presence_penalty=float(rng.choice([0, 0.25, -0.5])),
            frequency_penalty=float(rng.choice([0, 0.25])),
            repetition_penalty=float(rng.choice([1, 1.25])),
            penalty_decay=float(rng.choice([0, 0.5, 0.996, 1])),
            seed=seed,
        )
        fast, slow = Sampler(params, valid), SlowSampler(params, valid)
        for row in rows.astype(np.float32):
            assert fast.sample(row) == slow.sample(row), params


def test_frequencies_follow_the_softmax():
    logits = np.array([0.0, 1.0, 2.0, -1.0], dtype=np.float32)
    expected = np.exp(logits / 1.5) / np.exp(logits / 1.5).sum()
    sampler = Sampler(SamplingParams(temperature=1.5, top_p=1.0, seed=1), all_valid(4))
    counts = Counter(sampler.sample(logits) for _ in range(20000))
    np.testing.assert_allclose([counts[i] / 20000 for i in range(4)], expected, atol=0.01)


@pytest.mark.parametrize("top_p", [1.0, 1 - 1e-16, 0.9999999])
def test_top_p_one_stays_random_on_large_flat_distributions(top_p):
    """A cumulative sum that never reaches 1.0 must not turn the choice greedy."""
    rng = np.random.default_rng(1)
    greedy = 0
    for seed in range(40):
        logits = rng.normal(size=65536).astype(np.float32)
        token = Sampler(SamplingParams(top_p=top_p, seed=seed), all_valid(65536)).sample(logits)
        greedy += token == int(np.argmax(logits))
    assert greedy <= 1


def test_top_p_keeps_the_token_that_crosses_the_bound():
    logits = np.log(np.array([0.5, 0.3, 0.2], dtype=np.float32))
    sampler = Sampler(SamplingParams(top_p=0.6, seed=0), all_valid(3))
    assert {sampler.sample(logits) for _ in range(200)} == {0, 1}


def test_ties_at_a_cut_go_to_the_lower_id():
    logits = np.array([0, 7, 7, 7, 7], dtype=np.float32)
    for cut in ({"top_k": 2, "top_p": 1.0}, {"top_p": 0.45}):
        sampler = Sampler(SamplingParams(seed=0, **cut), all_valid(5))
        assert {sampler.sample(logits) for _ in range(200)} == {1, 2}


def test_padding_is_never_chosen_however_likely():
    logits = np.array([0, 50, 1, np.nan, np.inf], dtype=np.float32)
    valid = np.array([True, False, True, False, False])
    for params in (SamplingParams(temperature=0), SamplingParams(temperature=5.0, top_p=1.0, seed=3)):
        sampler = Sampler(params, valid)
        assert {sampler.sample(logits) for _ in range(100)} <= {0, 2}
    assert Sampler(SamplingParams(temperature=0), valid).sample(logits) == 2


def test_logits_are_not_changed():
    logits = np.arange(8, dtype=np.float32)
    sampler = Sampler(SamplingParams(frequency_penalty=1.0, seed=0), np.arange(8) < 6)
    for _ in range(5):
        sampler.sample(logits)
    np.testing.assert_array_equal(logits, np.arange(8))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused(bad):
    logits = np.array([0, bad, 1], dtype=np.float32)
    with pytest.raises(UserError, match="not finite"):
        Sampler(SamplingParams(), all_valid(3)).sample(logits)


def test_a_drawn_seed_is_reported_and_repeats_the_answer():
    logits = np.zeros(1000, dtype=np.float32)
    first = Sampler(SamplingParams(), all_valid(1000))
    second = Sampler(SamplingParams(seed=first.seed), all_valid(1000))
    tokens = [first.sample(logits) for _ in range(20)]
    assert tokens == [second.sample(logits) for _ in range(20)]
    assert tokens != [Sampler(SamplingParams(), all_valid(1000)).sample(logits) for _ in range(20)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 0.001),
        ("temperature", math.nan),
        ("temperature", "hot"),
        ("top_p", 1.5),
        ("top_k", -1),
        ("top_k", 1.5),
        ("presence_penalty", 3),
        ("frequency_penalty", -2.5),
        ("repetition_penalty", 0.996),
        ("penalty_decay", 1.1),
        ("seed", -1),
        ("seed", 2**64),
        ("max_tokens", 0),
        ("max_tokens", True),
        ("stop", "\n\n"),
        ("stop", ("",)),
        ("stop", ("\ud800",)),
    ],
)
def test_values_out_of_range_are_refused(name, value):
    with pytest.raises(UserError, match=name):
        SamplingParams(**{name: value})

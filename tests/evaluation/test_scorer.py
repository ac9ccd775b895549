"""Log-probabilities of a compiled library, of the reference and of other people's implementations of the same weights."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from rwkv_mlc import Engine, SamplingParams, UserError
from rwkv_mlc.evaluation.answers import answer
from rwkv_mlc.evaluation.compiled import CompiledScorer
from rwkv_mlc.evaluation.opening import open_scorer
from rwkv_mlc.evaluation.scorer import Request, Scorer, calls, log_probabilities, score
from support.paths import DEMO, DEMOS
from support.scoring import known_scorer

HELD_OUT = (DEMOS / "heldout.txt").read_bytes()


@pytest.fixture(scope="module")
def compiled(demo) -> Scorer:
    return dataclasses.replace(CompiledScorer.open(demo), slots=4, chunk=100, rows=24)


@pytest.fixture(scope="module")
def reference() -> Scorer:
    return open_scorer(str(DEMO))


def requests(scorer: Scorer) -> list[Request]:
    """Of many lengths, some of them longer than what a call takes."""
    tokens, sizes = scorer.tokenizer.encode(HELD_OUT), [(1, 1), (150, 3), (9, 60), (2, 1), (40, 2), (101, 24), (30, 25)]
    starts = np.cumsum([0, *map(sum, sizes)])
    return [Request(tokens[s : s + a], tokens[s + a : s + a + b]) for s, (a, b) in zip(starts, sizes)]


def test_a_library_scores_as_the_reference(compiled, reference, within):
    """In calls of several texts, of parts of one, and of one."""
    asked = requests(reference)
    found, expected = (list(score(scorer, asked)) for scorer in (compiled, reference))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.log_probabilities, other.log_probabilities, atol=1e-4)
        assert one.likeliest.tolist() == other.likeliest.tolist()
    sums = [sum(one.log_probabilities.sum() for one in scores) for scores in (found, expected)]
    within(f"sum of log-probabilities, {sums[1]:.2f}", abs(sums[0] - sums[1]), 1e-4)
    assert sum(len(one.likeliest) for one in found) == sum(len(request.target) for request in asked)


def test_an_artifacts_stored_weights_run_on_the_reference(demo, reference):
    stored = open_scorer(str(demo), "reference")
    assert stored.quantization == "q0f32" and stored.bits_per_weight == 32
    asked = requests(reference)[:2]
    for one, other in zip(score(stored, asked), score(reference, asked)):
        np.testing.assert_allclose(one.log_probabilities, other.log_probabilities, atol=1e-5)


@pytest.mark.parametrize("runner, demo_model", [("rwkv", "rwkv-4-village"), ("transformers", "rwkv-4-village")])
def test_other_implementations_score_as_the_reference(runner, demo_model):
    pytest.importorskip("torch")
    pytest.importorskip(runner)
    path = str(DEMOS / demo_model)
    other, own = open_scorer(path, runner), open_scorer(path)
    asked = requests(own)[1:4]
    for found, expected in zip(score(other, asked), score(own, asked), strict=True):
        np.testing.assert_allclose(found.log_probabilities, expected.log_probabilities, atol=1e-4)
    prompts = [own.tokenizer.encode(text) for text in ("User: Who are you?\n\nAssistant:", "Tom")]
    assert list(answer(other, prompts, [6, 6])) == list(answer(own, prompts, [6, 6]))


def test_greedy_answers_are_the_engines(demo, compiled):
    engine, stop = Engine(demo), ("\n\n",)
    prompts = [
        "User: Who lives in the red house?\n\nAssistant:",
        "Tom the cat",
        "Once",
        "User: hi\n\nAssistant:",
        "The",
    ]
    found = list(answer(compiled, [engine.encode(prompt) for prompt in prompts], [30] * 5, stop))
    for prompt, one in zip(prompts, found, strict=True):
        expected = engine.generate(prompt, SamplingParams(temperature=0, max_tokens=30, stop=stop))
        assert engine.tokenizer.decode(one.tokens).partition("\n\n")[0] == expected.text
        assert one.ended == (expected.finish_reason == "stop")
    assert {one.ended for one in found} == {True, False}


def test_calls_are_full_and_only_targets_have_logits():
    scorer = known_scorer(lambda tokens: np.arange(257.0) * len(tokens))
    asked = [Request([1, 2, 3], [4, 5]), Request([6] * 7, [7]), Request([8], [256, 9, 10])]
    found = list(score(scorer, asked))
    assert scorer.fed == [
        ({0: [1, 2, 3], 1: [6] * 5}, False),
        ({1: [6] * 2}, False),
        ({0: [4]}, True),
        ({0: [8]}, False),
        ({0: [256, 9]}, True),
    ]
    np.testing.assert_allclose(found[2].log_probabilities[0], -np.log(np.exp(-np.arange(257.0)).sum()))
    assert found[2].likeliest.tolist() == [True, False, False]
    assert list(calls([[1, 2, 3, 4, 5], [], [6]], 2)) == [{0: [1, 2]}, {0: [3, 4]}, {0: [5], 2: [6]}]


def test_logits_that_are_not_finite():
    for wrong in (np.nan, np.inf):
        with pytest.raises(UserError, match="logits are not finite"):
            log_probabilities(np.array([[0.0, wrong]]), [0])
    with pytest.raises(UserError, match="logits are not finite"):
        next(answer(known_scorer(lambda _: np.full(257, np.nan)), [[1]], [2]))


def test_what_cannot_be_opened(demo, tmp_path):
    with pytest.raises(UserError, match="--with rwkv cannot run"):
        open_scorer(str(demo), "rwkv")
    with pytest.raises(UserError, match="it holds some"):
        open_scorer(str(demo.parent))
    with pytest.raises(UserError, match="There is no file or folder"):
        open_scorer(str(tmp_path / "nothing"))

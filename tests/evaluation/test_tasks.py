"""The tasks, of models whose answers are known."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence

import numpy as np
import pytest

from rwkv_mlc import UserError
from rwkv_mlc.evaluation.comparison import compare, compare_answers
from rwkv_mlc.evaluation.lambada import lambada, read_documents
from rwkv_mlc.evaluation.opening import open_scorer
from rwkv_mlc.evaluation.perplexity import perplexity
from rwkv_mlc.evaluation.recall import pairs, recall, trial
from rwkv_mlc.evaluation.reversal import measured
from rwkv_mlc.evaluation.reverse import reverse
from rwkv_mlc.evaluation.scorer import Request
from rwkv_mlc.evaluation.text import pieces, windows
from support.paths import DEMOS
from support.scoring import known_scorer

OF_BYTE = {bytes([byte]): byte + 1 for byte in range(256)}


def ids(text: str) -> list[int]:
    return [OF_BYTE[bytes([byte])] for byte in text.encode()]


def writes(text: str, sure: float = 20.0):
    """Logits of a model that goes on with ``text``, whatever it has read of it or of something else."""
    written = ids(text)

    def logits(tokens: Sequence[int]) -> np.ndarray:
        following = np.zeros(257)
        for size in range(min(len(tokens), len(written) - 1), 0, -1):
            if list(tokens[-size:]) == written[:size]:
                following[written[size]] = sure
                break
        else:
            following[0] = sure
        return following

    return logits


def test_lambada_is_by_document():
    documents = ["a bc", "xx yy", "q a bd"]
    result = lambada(known_scorer(writes("a bc"), slots=2, chunk=3), documents)
    sure = 20 - math.log(math.exp(20) + 256)
    lost = np.array([3 * sure, 2 * (sure - 20) + sure - 20, 2 * sure + sure - 20])
    assert result.counts == {"documents": 3}
    assert result.metrics["accuracy"].figure().value == pytest.approx(1 / 3)
    np.testing.assert_allclose(result.metrics["perplexity"].sums, -lost, rtol=1e-9)
    assert result.figures(0)["perplexity"].value == pytest.approx(math.exp(-lost.sum() / 3))


def test_lambada_tells_as_it_goes():
    told = []
    lambada(known_scorer(writes("a bc")), ["a bc"] * 3, lambda *news: told.append(news))
    assert [(read, accuracy) for read, _, accuracy in told] == [(1, 1.0), (2, 1.0), (3, 1.0)]


@pytest.mark.parametrize(
    "lines, sentence",
    [
        ('{"text": "a b"}\nnonsense\n', "line 2 is not JSON"),
        ('{"text": "a b"}\n\n{"words": "a b"}\n', 'line 3 has no "text"'),
        ("[1]\n", 'line 1 has no "text"'),
        ('{"text": 3}\n', 'line 1 has no "text"'),
        ('{"text": "word"}\n', "line 1 does not end in a word"),
        ('{"text": "a b "}\n', "line 1 does not end in a word"),
        ("[" * 100_000, "line 1 is not JSON"),
        ("\n \n", "has no documents"),
        ("", "has no documents"),
    ],
)
def test_wrong_documents(lines, sentence, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(lines, encoding="utf-8")
    with pytest.raises(UserError, match=sentence):
        read_documents(path)


def test_a_limit_reads_no_further(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "a b"}\n{"text": "c d"}\nnonsense\n', encoding="utf-8")
    assert read_documents(path, 2) == ["a b", "c d"]
    with pytest.raises(UserError, match="cannot be read"):
        read_documents(tmp_path / "nothing")


def test_windows_have_every_token_once():
    tokens = list(range(1, 24))
    assert windows(tokens, 0, 8, 3) == [
        Request([0], tokens[:8]),
        *(Request(tokens[end - 8 : end - 3], tokens[end - 3 : end]) for end in (11, 14, 17, 20, 23)),
    ]
    assert windows(tokens, 0, 8, 8) == [Request([0], tokens[s : s + 8]) for s in (0, 8, 16)]
    assert windows(tokens, 0, 100, 50) == [Request([0], tokens)]
    for length, stride in ((8, 3), (8, 8), (5, 1), (23, 7), (22, 11)):
        assert [token for window in windows(tokens, 0, length, stride) for token in window.target] == tokens
    with pytest.raises(UserError, match="--stride must be between"):
        windows(tokens, 0, 8, 9)
    assert [len(piece) for piece in pieces(list(range(200)), 100)] == [100, 100]
    assert [len(piece) for piece in pieces(list(range(250)), 100)] == [100, 100]
    assert [len(piece) for piece in pieces(list(range(30)), 100)] == [30]


def test_perplexity_of_who_knows_nothing():
    result = perplexity(known_scorer(lambda _: np.zeros(257)), b"abcdefgh" * 16, 32, 16)
    assert result.counts == {"tokens": 128, "windows": 7}
    assert result.figures(0)["perplexity"].value == pytest.approx(257)
    assert result.figures(0)["bits per byte"].value == pytest.approx(math.log2(257))
    with pytest.raises(UserError, match="The text has 8 tokens"):
        perplexity(known_scorer(lambda _: np.zeros(257)), b"abcdefgh", 32, 16)


def test_buckets_of_a_comparison():
    """A takes all tokens for equal; so does B, but after 64 tokens it takes one for likelier than it is."""

    def leaning(tokens: Sequence[int]) -> np.ndarray:
        logits = np.zeros(257)
        logits[5] = math.log(257) * (len(tokens) > 64)
        return logits

    a, b = known_scorer(lambda _: np.zeros(257), rows=50), known_scorer(leaning, rows=70, name="leaning")
    buckets = compare(a, b, b"x" * 400, 150)
    assert [(bucket.first, bucket.last, bucket.tokens) for bucket in buckets] == [
        (0, 149, 400),
        (0, 63, 3 * 64),
        (64, 127, 2 * 64 + 36),
        (128, 149, 2 * 22),
    ]
    everything, early, later, latest = buckets
    assert early.kl.figure().value == 0 and early.agreement.figure().value == 1
    total = 2 * 257 - 1  # what B's numbers add up to where A's are 1 each
    kl = -math.log(257) + math.log(total) - math.log(257) / 257
    for bucket in (later, latest):
        assert bucket.kl.figure().value == pytest.approx(kl, rel=1e-9)
        assert bucket.agreement.figure().value == 0
        assert bucket.perplexity_b.against(bucket.perplexity_a).value == pytest.approx(total / 257)
    changed = (later.tokens + latest.tokens) / 400
    assert everything.kl.figure().value == pytest.approx(kl * changed)
    assert everything.agreement.figure().value == pytest.approx(1 - changed)


def test_a_model_beside_itself():
    scorer = known_scorer(writes("abc"), rows=64)
    for bucket in compare(scorer, scorer, b"abc" * 40, 100):
        assert bucket.kl.figure().value == 0 and bucket.agreement.figure().value == 1
        assert bucket.perplexity_b.against(bucket.perplexity_a).value == 1


def test_answers_side_by_side():
    """B stops where A goes on."""
    prompt = "Q?\n\nAssistant:"
    a, b = known_scorer(writes(prompt + " four\n\n")), known_scorer(writes(prompt + " fo\n\n"))
    found = compare_answers(a, b, ["Q?", "Q?"], 5)
    values = {name: figure["value"] for name, figure in found.to_dict(0).items()}
    assert values["same"] == 0 and values["shared"] == 3
    assert (values["length_a"], values["length_b"], values["longer"]) == (5, 5, 0)
    assert (values["ended_a"], values["ended_b"], values["ended_more"]) == (0, 1, 1)


def test_other_vocabularies_are_not_compared():
    a = known_scorer(lambda _: np.zeros(257))
    b = known_scorer(lambda _: np.zeros(257), vocabulary=DEMOS / "rwkv-7-village" / "rwkv_vocab_demo.txt")
    with pytest.raises(UserError, match="different vocabularies"):
        compare(a, b, b"abc", 10)


def test_the_ruler_reverses():
    """As many as the tests of its kernels ask for, with the checkpoint's own weights."""
    result = reverse(open_scorer(str(DEMOS / "rwkv-7-reverser")), measured(12))
    figures = result.figures(0)
    assert figures["exact"].value >= 0.9
    assert [name for name in figures if "digits" in name] == [
        "1 to 10 digits", "11 to 20 digits", "21 to 30 digits", "31 to 40 digits"
    ]  # fmt: skip
    assert sum(metric.sums.sum() for name, metric in result.metrics.items() if name != "exact") == (
        result.metrics["exact"].sums.sum()
    )


def test_trials_ask_for_the_first_of_the_pairs():
    context, number = trial(random.Random(3), 4)
    lines = context.split("\n")
    assert len(lines) == 5 and lines[4] + number == lines[0]
    assert len(dict(pairs(random.Random(3), 200))) == 200


def test_recall_by_distance():
    """A model that looks back for the name, and no further than three lines."""

    def remembers(tokens: Sequence[int]) -> np.ndarray:
        lines = bytes(token - 1 for token in tokens).decode().split("\n")
        logits = np.zeros(257)
        for line in lines[max(0, len(lines) - 4) : -1]:
            if line.startswith(lines[-1]) and len(lines[-1]) < len(line):
                logits[ids(line)[len(lines[-1])]] = 30.0
        return logits

    result = recall(known_scorer(remembers, chunk=64), (1, 3, 4), 5)
    values = {name: figure.value for name, figure in result.figures(0).items()}
    assert [values[f"exact after {distance}"] for distance in (1, 3, 4)] == [1, 1, 0]
    assert values["perplexity after 3"] == pytest.approx(1, abs=1e-6)
    assert values["perplexity after 4"] == pytest.approx(257**4)


def test_results_as_json():
    a, b = known_scorer(writes("a bc")), known_scorer(writes("a bd"), name="other")
    first, second = (lambada(scorer, ["a bc", "a bd"]) for scorer in (a, b))
    data = json.loads(json.dumps(second.to_dict(first, 0)))
    assert data["model"] == {"name": "other", "runner": "known", "quantization": None, "bits_per_weight": None}
    assert data["documents"] == 2 and data["metrics"]["accuracy"]["value"] == 0.5
    assert data["metrics"]["accuracy"]["against_first"]["value"] == 0

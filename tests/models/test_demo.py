"""The bundled demo models, the grammar that they learn and the script that trains them."""

from __future__ import annotations

import ast
import itertools
import json
import random
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from rwkv_mlc import reference
from rwkv_mlc.reference.rwkv7 import wkv as reference_wkv7
from rwkv_mlc.tokenizer import load_tokenizer
from rwkv_mlc.weights import open_checkpoint

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from demo import reversal
from demo.stories import is_held_out, tell
from demo.text import Grammar
from demo.vocabulary import Vocabulary
from demo.world import CAST, PLACES, THINGS

DEMO = ROOT / "configs" / "demo"
MODELS = {"rwkv-7-village": "7", "rwkv-5-village": "5.2", "rwkv-4-village": "4"}
PERPLEXITY = dict.fromkeys(MODELS, (1.40, 1.60))


def documents(seed: int, count: int, held_out: bool = False) -> list[str]:
    return list(itertools.islice(Grammar(seed, held_out).documents(), count))


def read_vocabulary(folder: Path) -> list[bytes]:
    tokens = []
    for line in (folder / "rwkv_vocab_demo.txt").read_text(encoding="utf-8").splitlines():
        number, rest = line.split(" ", 1)
        literal, length = rest.rsplit(" ", 1)
        token = ast.literal_eval(literal)
        token = token.encode() if isinstance(token, str) else token
        assert int(number) == len(tokens) + 1 and int(length) == len(token)
        tokens.append(token)
    return tokens


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_grammar_is_deterministic():
    assert documents(3, 200) == documents(3, 200)
    assert documents(3, 200) != documents(4, 200)
    assert all(document.endswith("\n\n") for document in documents(3, 200))


def test_held_out_stories_are_about_combinations_that_training_never_sees():
    combinations = list(itertools.product(CAST, THINGS, PLACES))
    share = sum(is_held_out(*combination) for combination in combinations) / len(combinations)
    assert 0.08 < share < 0.18

    def openings(seed: int, held_out: bool) -> set[str]:
        rng = random.Random(seed)
        first = {tell(rng, held_out, brief=True).sentences[0] for _ in range(3000)}
        return {s for s in first if any(thing in s for thing in THINGS) and any(place in s for place in PLACES)}

    assert openings(1, False) & openings(2, False)
    assert not openings(1, False) & openings(2, True)


def test_vocabulary_encodes_by_the_longest_match():
    vocabulary = Vocabulary([b"\n\n", b" the", b" there", b" th"])
    assert [vocabulary.tokens[i] for i in vocabulary.encode(" there the\n\n\nthx")] == [
        b" there", b" the", b"\n\n", b"\n", b"t", b"h", b"x",
    ]  # fmt: skip
    assert vocabulary.decode(vocabulary.encode("é the\n")) == "é the\n"


def test_vocabulary_keeps_the_pieces_that_save_most():
    vocabulary = Vocabulary.from_text("aaa bb aaa bb\n\n" * 5, 259)
    assert vocabulary.tokens[257:] == [b" bb", b" aaa"]


@pytest.mark.parametrize("name", MODELS)
def test_folder(name: str):
    folder = DEMO / name
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 4_000_000
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tokens = read_vocabulary(folder)
    assert tokens[:256] == [bytes([byte]) for byte in range(256)]
    assert len(set(tokens)) == len(tokens) and len(tokens) + 1 < config["vocab_size"]
    assert {b"\n\n", b"User", b"Assistant", b" the", b" village"} <= set(tokens)


@pytest.mark.parametrize("name", MODELS)
def test_held_out_perplexity(name: str):
    """The first 2 KB as one stream after id 0."""
    config, parameters = reference.load(open_checkpoint(str(DEMO / name)))
    assert config.generation == MODELS[name]
    tokenizer = load_tokenizer(DEMO / name / "rwkv_vocab_demo.txt")
    ids = tokenizer.encode((DEMO / "heldout.txt").read_bytes()[:2048])
    logits, _ = reference.forward(config, parameters, [0, *ids[:-1]])
    perplexity = np.exp(-log_softmax(logits)[np.arange(len(ids)), ids].mean())
    low, high = PERPLEXITY[name]
    assert low < perplexity < high


@pytest.mark.parametrize("generation", ["4", "5.2"])
def test_parallel_wkv_is_the_recurrence(generation: str):
    torch = pytest.importorskip("torch")
    from demo.model import wkv4, wkv5

    torch.manual_seed(0)
    batch, length, heads, n = 2, 48, 2, 8
    r, k, v = torch.randn(3, batch, length, heads, n, dtype=torch.float64)
    w = -torch.exp(torch.linspace(-6, 1.5, heads * n, dtype=torch.float64)).view(heads, n)
    u = torch.randn(heads, n, dtype=torch.float64)
    if generation == "5.2":
        initial = torch.randn(batch, heads, n, n, dtype=torch.float64)
        out, state = wkv5(r, k, v, w, u, initial)
        one, expected = initial, []
        for t in range(length):
            kv = k[:, t, :, :, None] * v[:, t, :, None, :]
            expected.append(torch.einsum("bhk,bhkv->bhv", r[:, t], one + u[:, :, None] * kv))
            one = kv + torch.exp(w)[..., None] * one
        torch.testing.assert_close(state, one)
    else:
        k, v, w, u = (4 * k).flatten(2), v.flatten(2), w.flatten(), u.flatten()
        state = (torch.zeros_like(k[:, 0]), torch.full_like(k[:, 0], -1e30))
        first, state = wkv4(k[:, :32], v[:, :32], w, u, state)
        second, state = wkv4(k[:, 32:], v[:, 32:], w, u, state)
        out = torch.cat((first, second), 1)
        a = b = torch.zeros_like(k[:, 0])
        expected = []
        for t in range(length):
            e, now = torch.exp(k[:, t]), torch.exp(u + k[:, t])
            expected.append((a + now * v[:, t]) / (b + now))
            a, b = torch.exp(w) * a + e * v[:, t], torch.exp(w) * b + e
        torch.testing.assert_close(state, (a / b, torch.log(b)))
    torch.testing.assert_close(out, torch.stack(expected, 1))


def test_chunks_of_wkv7_are_the_recurrence():
    torch = pytest.importorskip("torch")
    from demo.rwkv7 import wkv7

    rng = np.random.default_rng(0)
    batch, length, heads, n = 2, 48, 2, 8
    r, k, v, kk = rng.normal(size=(4, batch, length, heads, n))
    kk /= np.linalg.norm(kk, axis=-1, keepdims=True)
    w, a = rng.uniform([[-0.6]], [[0.0]], size=r.shape), rng.uniform(size=r.shape)
    state = rng.normal(size=(batch, heads, n, n))
    out, after = wkv7(*map(torch.from_numpy, (r, w, k, v, kk, a, state)))
    for i in range(batch):
        expected, expected_after = reference_wkv7(r[i], np.exp(w[i]), k[i], v[i], kk[i], a[i], state[i])
        np.testing.assert_allclose(out[i].numpy(), expected, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(after[i].numpy(), expected_after, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("generation", ["4", "5.2", "7"])
def test_training_writes_a_folder_that_loads(generation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    torch = pytest.importorskip("torch")
    import train_demo
    from demo import corpus
    from demo.generations import model_of
    from demo.model import Size

    monkeypatch.setattr(corpus, "VOCABULARY_DOCUMENTS", 200)
    monkeypatch.setattr(corpus, "HELD_OUT_BYTES", 2000)
    out = tmp_path / "tiny"
    torch.set_num_threads(1)
    tiny = ["--steps", "3", "--layers", "2", "--hidden-size", "64", "--batch", "2"]
    train_demo.main(["--generation", generation, "--out", str(out), *tiny])
    config, parameters = reference.load(open_checkpoint(str(out)))
    assert (config.generation, config.num_hidden_layers, config.hidden_size) == (generation, 2, 64)

    from safetensors.torch import load_file

    model = model_of(Size(generation, num_hidden_layers=2, hidden_size=64))
    model.load_state_dict(load_file(out / "model.safetensors"))
    tokens = list(range(1, 40))
    with torch.no_grad():
        expected, _ = model(torch.tensor([tokens]), model.initial_state(1))
    logits, _ = reference.forward(config, parameters, tokens)
    np.testing.assert_allclose(logits, expected[0].numpy(), atol=2e-5 * abs(logits).max())
    assert (out.parent / "heldout.txt").stat().st_size <= 2000


def test_an_interrupted_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In the middle of a context whose state is carried: to the same model, to the last bit."""
    torch = pytest.importorskip("torch")
    import train_demo
    from demo.generations import model_of
    from demo.tasks import ReversalTask

    torch.set_num_threads(1)
    monkeypatch.setattr(train_demo, "SAVED_EVERY", 2)
    plan, task = train_demo.Plan(steps=5, batch=2, length=16), ReversalTask()

    def rows(*_):
        return ([i for digits in (str(n), "314", "15", "92") for i in task.row(digits)] for n in count(1000))

    monkeypatch.setattr(task, "rows", rows)

    def trained(steps: int, checkpoint: Path | None) -> dict:
        torch.manual_seed(0)
        model = model_of(replace(task.size, hidden_size=64, num_hidden_layers=1))
        losses = train_demo.train(model, task, replace(plan, steps=steps, final_rate=plan.rate), 0, checkpoint)
        return {"loss": torch.tensor(losses)} | model.state_dict()

    whole, file = trained(5, None), tmp_path / "training.pt"
    trained(3, file)
    resumed = trained(5, file)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_answers_count_up_to_the_token_that_ends_them():
    torch = pytest.importorskip("torch")
    from demo.batch import batch_of
    from demo.tasks import ReversalTask
    from train_demo import in_answer

    task = ReversalTask()
    tokens, own = batch_of([task.row("8142"), task.row("7")], torch.device("cpu"))
    assert tokens.shape == (2, 17)
    answers = in_answer(tokens, task.began, task.ended)
    assert [task.vocabulary.decode(row[mask].tolist()) for row, mask in zip(tokens, own)] == ["8142=2418\n", "7=7\n"]
    assert [task.vocabulary.decode(row[mask].tolist()) for row, mask in zip(tokens, answers)] == ["2418\n", "7\n"]


def test_strings_to_learn_from_grow():
    drawn = list(itertools.islice(reversal.growing_strings(0, until=500), 1500))
    lengths = [len(string) for string in drawn]
    assert set(lengths[:50]) == set(range(1, 9)) and set(lengths[500:]) == set(range(1, 41))
    assert not set(drawn) & {string for string in reversal.measured() if len(string) > 8}


def test_exact_answers_are_those_to_the_end_of_the_line():
    strings = reversal.measured(40)
    assert strings == reversal.measured()[:40] and max(map(len, strings)) > 30
    assert reversal.exact_share(lambda prompt: prompt[-2::-1] + "\n", 40) == 1
    assert reversal.exact_share(lambda prompt: prompt[-2::-1], 40) == 0
    assert reversal.exact_share(lambda prompt: prompt[-2:0:-1] + "0\n", 40) < 0.3

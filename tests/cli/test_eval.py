"""``eval`` from the command line: its tables, its JSON and its refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rwkv_mlc.cli.main import main
from rwkv_mlc.evaluation.text import DEFAULT_QUESTIONS, DEFAULT_TEXT, read_questions
from support.paths import DEMOS, ROOT

RULER = DEMOS / "rwkv-7-reverser"


def run(capsys, *arguments: str | Path) -> str:
    assert main(["eval", *map(str, arguments)]) == 0
    return capsys.readouterr().out


@pytest.fixture
def documents(tmp_path) -> Path:
    path = tmp_path / "data.jsonl"
    texts = ["Tom the cat lives in the red house", "Anna likes to sing old songs", "Who works at the mill"]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts * 34), encoding="utf-8")
    return path


def test_lambada(demo, documents, tmp_path, capsys):
    """On the library, and beside it on the reference with the same weights, so that they differ by rounding alone."""
    out = run(capsys, "lambada", demo, demo, "--data", documents, "--json", tmp_path / "found.json")
    lines = out.splitlines()
    assert lines[0] == lines[1] and lines[0].startswith("100 ppl ")
    assert "102 documents; in brackets 95 % intervals of paired bootstraps" in out
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert found["task"] == "lambada" and found["data"] == str(documents) and found["seed"] == 0
    first, second = found["results"]
    assert first["model"] == {"name": demo.name, "runner": "llvm", "quantization": "q0f32", "bits_per_weight": 32.0}
    assert "against_first" not in first["metrics"]["accuracy"]
    assert second["metrics"]["perplexity"]["against_first"] == {"value": 1.0, "interval": [1.0, 1.0]}
    run(
        capsys,
        "lambada",
        demo,
        "--with",
        "reference",
        "--data",
        documents,
        "--limit",
        3,
        "--json",
        tmp_path / "ours.json",
    )
    run(capsys, "lambada", demo, "--data", documents, "--limit", 3, "--json", tmp_path / "found.json")
    ours, found = (
        json.loads((tmp_path / f"{name}.json").read_text("utf-8"))["results"][0] for name in ("ours", "found")
    )
    assert ours["documents"] == 3 and ours["metrics"]["accuracy"] == found["metrics"]["accuracy"]
    assert ours["metrics"]["perplexity"]["value"] == pytest.approx(found["metrics"]["perplexity"]["value"], rel=1e-4)


def test_perplexity_compare_and_recall(demo, tmp_path, capsys):
    text, questions, file = tmp_path / "text.txt", tmp_path / "questions.txt", tmp_path / "found.json"
    text.write_bytes((DEMOS / "heldout.txt").read_bytes()[:3000])
    questions.write_text("Who are you?\n\nWho lives in the red house?\n", encoding="utf-8")
    run(capsys, "perplexity", demo, "--text", text, "--ctx", 256, "--json", file)
    found = json.loads(file.read_text(encoding="utf-8"))
    assert (found["text"], found["bytes"], found["ctx"], found["stride"]) == ("text.txt", 3000, 256, 128)
    (result,) = found["results"]
    assert 1 < result["metrics"]["perplexity"]["value"] < 1.6 and result["windows"] == -(-result["tokens"] // 128) - 1

    out = run(capsys, "compare", demo, demo, "--text", text, "--questions", questions, "--json", file, "--ctx", 256)
    found = json.loads(file.read_text(encoding="utf-8"))
    assert [(bucket["first"], bucket["last"]) for bucket in found["buckets"]] == [
        (0, 255),
        (0, 63),
        (64, 127),
        (128, 255),
    ]
    for bucket in found["buckets"]:
        assert bucket["kl"] == {"value": 0.0, "interval": [0.0, 0.0]} and bucket["agreement"]["value"] == 1
        assert bucket["perplexity_ratio"] == {"value": 1.0, "interval": [1.0, 1.0]}
    assert found["answers"]["questions"] == 2 and found["answers"]["same"]["value"] == 1
    assert found["answers"]["ended_a"]["value"] == 1
    assert "2 questions, answers of at most 64 tokens: 100.0% are the same" in out

    out = run(capsys, "recall", demo, "--distances", "1,3", "--trials", 4)
    assert "4 trials" in out and "exact after 3" in out


def test_reverse_is_the_readmes(capsys):
    """The first strings, with the checkpoint's own weights: of 500 it reverses 95.2 %."""
    out = run(capsys, "reverse", RULER, "--limit", 10)
    assert "rwkv-7-reverser (reference)" in out and "10 strings" in out


def test_perplexity_is_the_readmes(tmp_path, capsys):
    command = ["--artifact-path", str(tmp_path), "--quantization", "q0f32", "--target", "llvm"]
    assert main(["build", "--model", str(DEMOS / "rwkv-7-village"), *command]) == 0
    capsys.readouterr()
    text = ["--text", DEMOS / "heldout.txt", "--ctx", 1 << 20]
    assert "perplexity  1.4048  [" in run(capsys, "perplexity", tmp_path / "rwkv-7-village-q0f32", *text)
    table = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "| `q0f32` | float32 | 32.0 | 6.31 GB | 1.4048 |" in table


def test_our_own_text_has_several_windows_and_scripts():
    text = DEFAULT_TEXT.read_text(encoding="utf-8")
    assert len(text.encode()) > 9000
    assert set("üéóдλ铺書다حग{") <= set(text)
    assert len(read_questions(DEFAULT_QUESTIONS)) == 16


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ("lambad MODEL", "there is no command lambad; did you mean lambada?"),
        ("perplexity MODEL --text EMPTY", "holds no text"),
        ("perplexity MODEL --text SHORT", "The text has 5 tokens, expected at least 64"),
        ("perplexity MODEL --text NOTHING", "cannot be read"),
        ("perplexity MODEL --ctx 64 --stride 65", "--stride must be between 1 and --ctx, 64, not 65"),
        ("perplexity MODEL --ctx 1", "expected an integer of at least 2"),
        ("compare MODEL OTHER", "have different vocabularies, of 288 and 768 tokens"),
        ("lambada MODEL --data WRONG", "line 2 is not JSON"),
        ("lambada MODEL --data EMPTY", "has no documents"),
        ("lambada MODEL", "the following arguments are required: --data"),
        ("recall MODEL --distances 0", "expected an integer of at least 1"),
        ("reverse NOTHING", "There is no file or folder"),
        ("reverse MODEL --device toaster", "toaster"),
        ("reverse MODEL --json NOTHING/x", "cannot be written"),
        ("reverse MODEL --with transformers", "transformers does not load"),
    ],
)
def test_refusals(arguments, sentence, tmp_path, capsys):
    files = {"EMPTY": " \n", "SHORT": "hello", "WRONG": '{"text": "a b"}\n{\n'}
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    paths = {name: str(tmp_path / name) for name in (*files, "NOTHING")}
    paths |= {"MODEL": str(RULER), "OTHER": str(DEMOS / "rwkv-7-village"), "NOTHING/x": str(tmp_path / "NOTHING" / "x")}
    words = [paths.get(word, word) for word in arguments.split()]
    try:
        code = main(["eval", *words])
    except SystemExit as end:
        code = end.code
    shown = capsys.readouterr().err
    assert code == 2 and sentence in shown and "Traceback" not in shown

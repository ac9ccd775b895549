"""The model of lm-eval, on tasks whose data lie here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from rwkv_mlc import UserError
from rwkv_mlc.evaluation.opening import open_scorer
from rwkv_mlc.evaluation.scorer import Request, score

CHOICES = """
task: village_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "User: {{{{question}}}}\\n\\nAssistant:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
metric_list: [{{metric: acc}}]
"""
ROLLING = """
task: village_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: word_perplexity}}, {{metric: byte_perplexity}}]
"""
ANSWERS = """
task: village_answers
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "User: {{{{question}}}}\\n\\nAssistant:"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n\\n"], do_sample: false, max_gen_toks: 40}}
metric_list: [{{metric: exact_match}}]
"""
QUESTIONS = [
    ("Who lives in the red house?", [" Tom the cat lives in the red house.", " Nobody does, in winter."]),
    ("What is your name?", [" It rains.", " My name is Pip. I know everything about the village."]),
]


@pytest.fixture
def lm_eval(tmp_path, monkeypatch):
    for name in ("HF_HOME", "HF_DATASETS_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return pytest.importorskip("lm_eval", reason="lm-eval is not installed")


def write_tasks(folder: Path) -> None:
    data = folder / "data.jsonl"
    rows = [
        {"question": question, "choices": choices, "gold": i, "answer": choices[i], "text": f"{question}{choices[i]}"}
        for i, (question, choices) in enumerate(QUESTIONS)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, text in (("choices", CHOICES), ("text", ROLLING), ("answers", ANSWERS)):
        (folder / f"{name}.yaml").write_text(text.format(data=data), encoding="utf-8")


def test_the_harness_runs_an_artifact(lm_eval, demo, tmp_path, monkeypatch, capsys):
    """By the command, as a user runs it."""
    from lm_eval.__main__ import cli_evaluate

    from rwkv_mlc.evaluation import harness

    write_tasks(tmp_path)
    tasks = ["--include_path", str(tmp_path), "--tasks", "village_choices,village_text,village_answers"]
    model = [
        "--model",
        "rwkv_mlc",
        "--model_args",
        f"artifact={demo}",
        "--batch_size",
        "3",
        "--output_path",
        str(tmp_path / "out"),
    ]
    monkeypatch.setattr(sys, "argv", ["lm_eval", *model, *tasks])
    cli_evaluate()
    (file,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(file.read_text(encoding="utf-8"))["results"]
    assert found["village_choices"]["acc,none"] == 1
    assert found["village_answers"]["exact_match,none"] == 1
    scorer = open_scorer(str(demo))
    texts = [f"{question}{choices[i]}" for i, (question, choices) in enumerate(QUESTIONS)]
    asked = [Request([scorer.begin], scorer.tokenizer.encode(text)) for text in texts]
    lost = -sum(one.log_probabilities.sum() for one in score(scorer, asked))
    expected = np.exp(lost / sum(len(text.encode()) for text in texts))
    assert found["village_text"]["byte_perplexity,none"] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(UserError, match="batch_size must be"):
        harness.RwkvMlc(str(demo), batch_size=0)

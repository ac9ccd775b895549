"""Writes what the float64 reference answers with the demo models, greedily, for ``tests/models/test_accuracy.py``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from rwkv_mlc import reference
from rwkv_mlc.tokenizer import load_tokenizer
from rwkv_mlc.weights import open_checkpoint
from support.accuracy import DEMO_MODELS, PROMPTS, greedy
from support.paths import DEMOS

PINNED = ROOT / "tests" / "models" / "demo_greedy.json"


def main() -> None:
    answers = {}
    for name in DEMO_MODELS:
        config, parameters = reference.load(open_checkpoint(str(DEMOS / name)))
        tokenizer = load_tokenizer(DEMOS / name / "rwkv_vocab_demo.txt")
        answers[name] = {}
        for prompt in PROMPTS:
            state = None

            def step(tokens: list[int]) -> np.ndarray:
                nonlocal state
                logits, state = reference.forward(config, parameters, tokens, state)
                return logits[-1]

            answers[name][prompt] = tokenizer.decode(greedy(step, [0, *tokenizer.encode(prompt)], 64))
    PINNED.write_text(json.dumps(answers, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

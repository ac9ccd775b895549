"""The ruler: a tiny model that reverses strings of digits, of whose answers nothing counts that is not exact."""

from __future__ import annotations

import sys

import numpy as np

from rwkv_mlc.tokenizer import load_tokenizer
from rwkv_mlc.weights import open_checkpoint
from support.accuracy import greedy
from support.compiled import Model
from support.paths import DEMOS, ROOT

sys.path.insert(0, str(ROOT / "tools"))

from demo.reversal import exact_share

RULER = DEMOS / "rwkv-7-reverser"
STRINGS = 40


def exact(model: Model, state_bits: int = 24) -> float:
    """The share of exact answers, each read at once and decoded, with states of so many significant bits after every call."""
    tokenizer = load_tokenizer(RULER / "rwkv_vocab_demo.txt")

    def answer(prompt: str) -> str:
        state = model.runner.new_state()

        def step(tokens: list[int]) -> np.ndarray:
            nonlocal state
            logits = model.runner.run("prefill" if len(tokens) > 1 else "decode", [tokens], state)[0]
            if state_bits < 24:
                state = model.runner.state_from(rounded(array, state_bits) for array in state.arrays())
            return logits

        return tokenizer.decode(greedy(step, tokenizer.encode(prompt), len(prompt)))

    return exact_share(answer, STRINGS)


def rounded(array: np.ndarray, bits: int) -> np.ndarray:
    mantissas, exponents = np.frexp(array)
    return np.ldexp(np.round(np.ldexp(mantissas, bits)), exponents - bits)


def test_exact_answers(compiled):
    model = compiled(open_checkpoint(str(RULER)), "q0f16", functions=("prefill", "decode"))
    assert exact(model) >= 0.95
    assert exact(model, state_bits=4) < 0.7, "they should fall where the state loses bits"

"""What models are given and how near the reference they have to come."""

from __future__ import annotations

from itertools import product

import numpy as np

from rwkv_mlc.interfaces import native
from rwkv_mlc.quantization.schemes import SCHEMES
from rwkv_mlc.tokenizer import load_tokenizer
from support.compiled import QUICK
from support.paths import DEMOS
from support.synthetic import synthetic_checkpoint

DEMO_MODELS = sorted(path.parent.name for path in DEMOS.glob("*-village/config.json"))
PROMPTS = ("Once upon a time", "User: Hello.\n\nAssistant:")
TOKENS = np.random.default_rng(0).integers(0, 97, 200).tolist()
BOUND = 2e-5  # of the largest logit
ALONE = ("prefill", "score", "decode")  # of one sequence
BATCHED = ("q0f32", "q4f16_1")
FUNCTIONS = {scheme: native.FUNCTIONS if scheme in BATCHED else ALONE for scheme in SCHEMES}
"""What the libraries of ``trained_like_weights`` for this CPU have."""
OPTIMIZED = {*product(("4", "5.2"), SCHEMES), ("6", "q4f16_1"), ("7", "q4f16_1"), ("7a", "q0f32")}
"""What LLVM makes of the kernels is seen here: 5.0 and 5.1 have those of 5.2, and so have 6 and 7 but for a few."""
LOW_RANK_INPUTS = (".w1", ".a1", ".v1", ".g1", ".s1", ".time_maa_w1", ".time_decay_w1")
"""What reads normed inputs with a row for each: [C, rank]."""


def target_of(generation: str, scheme: str) -> str:
    return "llvm" if (generation, scheme) in OPTIMIZED else QUICK


def trained_like_weights(generation: str, **shape) -> dict[str, np.ndarray]:
    """Decays from exp(-exp(-6)) to exp(-exp(-1)) per token, where training starts, and blocks that add a fifth as much
    to the residual stream as random ones.

    Random weights of generation 5 make some head's output at some token all but zero, and the group norm then enlarges
    whatever rounding there is (``test_logits_of_random_weights``). Trained models are as tame as these: conditioning
    below 2 for the demo models, 1.4 to 5.4 here (the most in three bits), 3 to 120 for random weights."""
    tensors = synthetic_checkpoint(generation, **shape)
    for name, array in tensors.items():
        if name.endswith(("att.output.weight", "ffn.value.weight")):
            array *= 0.2
        elif name.endswith("time_decay"):
            array[...] = np.linspace(-6, -1, array.size).reshape(array.shape)
    return tensors


def with_outliers(
    tensors: dict[str, np.ndarray], factor: float, channels: tuple[int, ...] = (3, 77)
) -> dict[str, np.ndarray]:
    """A model that computes the same, some of whose channels are larger after every block's norms and have smaller weights."""
    tensors, chosen = {name: array.copy() for name, array in tensors.items()}, list(channels)
    for name, array in tensors.items():
        part = name.split(".")[-2]
        if part in ("ln1", "ln2"):
            array[chosen] *= factor
        elif part in ("receptance", "key", "value", "gate") and not name.endswith("ffn.value.weight"):
            array[:, chosen] /= factor
        elif name.endswith(LOW_RANK_INPUTS):
            array[chosen] /= factor
    return tensors


def held_out(name: str, size: int) -> list[int]:
    """The first ``size`` bytes of the held-out text as one document, which id 0 begins."""
    return [
        0,
        *load_tokenizer(DEMOS / name / "rwkv_vocab_demo.txt").encode((DEMOS / "heldout.txt").read_bytes()[:size]),
    ]


def greedy(step, prompt: list[int], count: int) -> list[int]:
    """``step(tokens)`` reads tokens and returns the logits after the last."""
    tokens = [int(step(prompt).argmax())]
    while len(tokens) < count:
        tokens.append(int(step(tokens[-1:]).argmax()))
    return tokens

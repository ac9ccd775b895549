"""What reading a prompt with activations of integers costs: the logits after it, beside the exact ones."""

from __future__ import annotations

from collections import deque

import numpy as np

from ..data_files import ROOT
from ..engine.engine import Engine

PROMPT_TOKENS = 512
PROMPT_BYTES = 4096


def prefill_error(engine: Engine) -> dict[str, float]:
    """``relative_rms``, the root mean square of the differences as a part of that of the logits, and ``max_abs``, the
    largest one, between ``prefill`` and ``score`` after the last of some hundred tokens of text.

    Raises UserError where the model's vocabulary has no tokens for the text, which is plain ASCII."""
    text = (ROOT / "demo" / "heldout.txt").read_bytes()[:PROMPT_BYTES]
    tokens = engine.tokenizer.encode(text)[:PROMPT_TOKENS]
    found = engine.prefill(tokens, engine.new_state())
    (chunk,) = deque(engine.score(tokens, engine.new_state()), maxlen=1)
    exact = chunk[-1].astype(np.float64)
    difference = found - exact
    return {
        "relative_rms": float(np.sqrt(np.mean(difference**2) / np.mean(exact**2))),
        "max_abs": float(np.abs(difference).max()),
    }

"""How much of channel mixing's hidden layer relu^2 leaves at zero; weights of those units are not read when decoding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..engine.engine import Engine
from .breakdown import instrumented

LISTS = ("list_inputs", "quantize_inputs")  # kernels that take the hidden layer and leave the zeros out


def zeros_per_layer(engine: Engine, tokens: Sequence[int]) -> list[float]:
    """The part of the hidden units that is exactly zero in each layer, the mean over ``tokens`` read one by one from the
    beginning of a document on; empty where the scheme has all units read.

    Raises UserError for an id outside the vocabulary."""
    zeros: list[float] = []

    def instrument(_function, name, before, _result, *args):
        if before and name.startswith(LISTS):
            hidden = np.from_dlpack(args[0])
            zeros.append(1 - np.count_nonzero(hidden) / hidden.size)

    state = engine.new_state()
    with instrumented(engine, instrument):
        for token in tokens:
            engine.runner.run("batch_decode", [[token]], state)  # ``decode`` has this kernel merged with others
    per_token = np.reshape(zeros, (len(tokens), -1))
    return [float(zero) for zero in per_token.mean(axis=0)]

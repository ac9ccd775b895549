"""How much of channel mixing's hidden layer relu^2 leaves at zero; weights of those units are not read when decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..engine.engine import Engine
from .breakdown import instrumented

LISTS = ("list_inputs", "quantize_inputs")  # kernels that take the hidden layer and leave the zeros out


@dataclass(frozen=True)
class HiddenUnits:
    """Means over tokens for one layer: the part of the hidden units that is exactly ``zero``, and the part whose weights
    are ``unread``; where most units are not zero the weights of all are read."""

    zero: float
    unread: float


def hidden_units(engine: Engine, tokens: Sequence[int]) -> list[HiddenUnits]:
    """For every layer, over ``tokens`` read one by one from the beginning of a document on; empty where the kernels of the
    scheme leave nothing out. Raises UserError for an id outside the vocabulary."""
    from tir_kernels.cpu.lists import MOST  # here, as it loads the compiler

    zeros: list[float] = []

    def instrument(_function, name, before, _result, *args):
        if before and name.startswith(LISTS):
            hidden = np.from_dlpack(args[0])
            zeros.append(1 - np.count_nonzero(hidden) / hidden.size)

    state = engine.new_state()
    with instrumented(engine.runner, instrument):
        for token in tokens:
            engine.runner.run("batch_decode", [[token]], state)  # ``decode`` has this kernel merged with others
    zero = np.reshape(zeros, (len(tokens), -1))
    unread = np.where(zero > 1 - MOST, zero, 0)
    return [HiddenUnits(float(z), float(u)) for z, u in zip(zero.mean(axis=0), unread.mean(axis=0))]

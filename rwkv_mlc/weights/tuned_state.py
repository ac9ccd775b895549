"""Files of state tuning (RWKV-LM, RWKV-PEFT): a state that was trained in place of the zeros before the first token.

They hold ``blocks.i.att.time_state``, [heads, value, key] in every generation, for which a generation says which of its states
that is, and in which order of the axes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..config import RWKVConfig
from ..errors import UserError
from ..escaping import listed, listed_problems
from ..models import GENERATIONS, generation_of
from . import read_file
from .adapters import TUNED_STATE, content_of, own_name

NAME = "blocks.{}.att.time_state"


def read_tuned_state(path: Path, config: RWKVConfig) -> dict[str, np.ndarray]:
    """The trained states as the model's libraries take them: float32 [*shape] by ``StateSpec.name``.

    Raises UserError for a generation without such a state, for a file that cannot be read, and for one whose tensors are not
    exactly those of this model, or not finite."""
    tuned = generation_of(config).tuned_state
    if tuned is None:
        those = listed([name for name, generation in GENERATIONS.items() if generation.tuned_state])
        raise UserError(
            f"RWKV-{config.generation} has no state of heads, which is what state tuning trains; --state is for {those}."
        )
    if not path.exists():
        raise UserError(f"There is no file {path}; give what state tuning has saved.")
    stored = {own_name(name): tensor for name, tensor in read_file(path, "tuned state").tensors.items()}
    shape = (config.num_heads, config.head_size, config.head_size)
    names = {NAME.format(layer): f"blocks.{layer}.{tuned.role}" for layer in range(config.num_hidden_layers)}
    if names.keys().isdisjoint(stored) and (content := content_of(stored)) not in (TUNED_STATE, None):
        raise UserError(f"{path} is {content.what}, not a tuned state; {content.advice}.")
    problems = [f"missing {name}" for name in names if name not in stored]
    problems += [f"unknown {name}" for name in stored if name not in names]
    problems += [
        f"{name} is {list(stored[name].shape)}, expected {list(shape)}"
        for name in names
        if name in stored and stored[name].shape != shape
    ]
    if problems:
        raise UserError(
            f"{path} is no tuned state of this model, RWKV-{config.generation} with {config.num_hidden_layers} layers and "
            f"{config.num_heads} heads of {config.head_size}: {listed_problems(problems)}."
        )
    arrays = {
        name: np.ascontiguousarray(stored[source].read().transpose(tuned.axes), np.float32)
        for source, name in names.items()
    }
    if damaged := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        raise UserError(f"{path} holds NaN or infinite values for {listed(damaged)}; get it again.")
    return arrays

"""The models in plain numpy and float64: what every kernel, scheme and target is measured against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..config import RWKVConfig
from ..models import ModelOptions, generation_of, resolve
from ..weights.checkpoint import Checkpoint
from .trace import Trace, ignore

State = dict[tuple[int, str], np.ndarray]


def load(
    checkpoint: Checkpoint, dtype: type = np.float64, options: ModelOptions = ModelOptions()
) -> tuple[RWKVConfig, dict[str, np.ndarray]]:
    """The config and every parameter, in ``dtype`` under ``Parameter.name``. Raises UserError as ``models.resolve``."""
    config, parameters, tensors = resolve(checkpoint, options)
    return config, {p.name: p.convert(tensors[p.source].read(), dtype) for p in parameters}


def initial_state(config: RWKVConfig) -> State:
    """The state before the first token: float64 by (layer, role), roles and shapes of the model's ``states``."""
    return {
        (layer, tensor.role): np.full(tensor.shape, tensor.initial, np.float64)
        for layer in range(config.num_hidden_layers)
        for tensor in generation_of(config).states(config)
    }


def forward(
    config: RWKVConfig,
    parameters: Mapping[str, np.ndarray],
    tokens: Sequence[int],
    state: Mapping[tuple[int, str], np.ndarray] | None = None,
    trace: Trace = ignore,
    dtype: type = np.float64,
) -> tuple[np.ndarray, State]:
    """Logits [T, V] after each of T tokens, and the state after the last, both in ``dtype``.

    ``parameters`` are by ``Parameter.name``, in ``dtype`` or a smaller float type; no ``state`` means ``initial_state``.
    ``trace`` is given every value by name. The arguments stay as they are and the results share no memory with them."""
    if state is None:
        state = initial_state(config)
    copy: State = {key: np.array(array, dtype) for key, array in state.items()}
    ids = np.asarray(tokens, np.intp)
    embedded: np.ndarray = parameters["model.embeddings.weight"][ids].astype(dtype)
    return generation_of(config).reference(config, parameters, trace("emb", embedded), copy, trace, ids)

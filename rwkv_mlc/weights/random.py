"""Presets and random weights: any size can be built and timed without a download."""

from __future__ import annotations

import hashlib
import json
from math import prod

import numpy as np

from ..config import RWKVConfig
from ..data_files import config_path
from ..models import Parameter, model_module
from .checkpoint import Checkpoint, LazyTensor


def load_preset(name: str) -> RWKVConfig:
    """A model of ``configs/models``, such as ``rwkv-5-world-0.1b``. Raises UserError for an unknown name."""
    return RWKVConfig.from_dict(json.loads(config_path("models", name).read_text(encoding="utf-8")))


def random_checkpoint(config: RWKVConfig, name: str, seed: int = 0) -> Checkpoint:
    """A checkpoint whose tensors are drawn when they are read, each from a generator of its own, so that the order of
    reading does not matter; of realistic scale, with decays spread as in a trained model."""

    def lazy_tensor(parameter: Parameter) -> LazyTensor:
        shape = parameter.source_shape or parameter.shape
        return LazyTensor(shape, "float32", lambda: _draw(config, parameter, shape, seed))

    parameters = model_module(config).parameters(config)
    return Checkpoint(
        name=name,
        format="random",
        source=f"{name}, random weights, seed {seed}",
        tensors={parameter.source: lazy_tensor(parameter) for parameter in parameters},
        head_size_divisor=config.head_size_divisor,
        context_length=config.context_length,
    )


def _draw(config: RWKVConfig, parameter: Parameter, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Float32 [*shape], uniform between two bounds that the parameter's part in the model sets."""
    part = parameter.source.rsplit(".", 1)[-1]
    if parameter.role != "vector":
        bound = 0.6 * (3.0 / shape[-1]) ** 0.5
        low, high = -bound, bound
    elif part == "time_decay":
        low, high = (-5.0, 3.0) if config.generation == "4" else (-6.0, -0.5)
    elif part in ("time_first", "time_faaaa"):
        low, high = -1.0, 1.0
    elif part.startswith("time_mix_"):
        low, high = 0.0, 1.0
    else:
        return np.full(shape, 1.0 if part == "weight" else 0.0, np.float32)
    digest = hashlib.sha256(f"{seed} {parameter.source}".encode()).digest()
    generator = np.random.Generator(np.random.SFC64(int.from_bytes(digest, "little")))
    array = generator.random(prod(shape), np.float32).reshape(shape)
    array *= high - low
    array += low
    return array

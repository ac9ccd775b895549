"""Presets and random weights: any size can be built and timed without a download."""

from __future__ import annotations

import hashlib
from math import prod

import numpy as np

from ..config import RWKVConfig
from ..data_files import config_path
from ..models import Parameter, generation_of
from ..typed_json import read
from .checkpoint import Checkpoint, LazyTensor

RANDOM = "random"  # the format of such checkpoints


def load_preset(name: str) -> RWKVConfig:
    """A model of ``configs/models``, such as ``rwkv-5-world-0.1b``. Raises UserError for an unknown name."""
    return read(RWKVConfig, config_path("models", name), "correct it")


def random_checkpoint(config: RWKVConfig, name: str, seed: int = 0) -> Checkpoint:
    """A checkpoint whose tensors are drawn when they are read, each from a generator of its own, so that the order of
    reading does not matter; of realistic scale, with decays spread as in a trained model."""

    def lazy_tensor(parameter: Parameter) -> LazyTensor:
        shape = parameter.source_shape or parameter.shape
        return LazyTensor(shape, "float32", lambda: _draw(parameter, shape, seed))

    parameters = generation_of(config).parameters(config)
    return Checkpoint(
        name=name,
        format=RANDOM,
        source=f"{name}, random weights, seed {seed}",
        tensors={parameter.source: lazy_tensor(parameter) for parameter in parameters},
        head_size_divisor=config.head_size_divisor,
        context_length=config.context_length,
    )


def _draw(parameter: Parameter, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Float32 [*shape], uniform between the parameter's bounds; what a matrix of trained models' scale puts out is about as
    large as what it reads."""
    if parameter.role == "vector":
        if parameter.drawn is None:
            raise ValueError(f"{parameter.name} does not say between which bounds it is drawn")
        low, high = parameter.drawn
    else:
        high = 0.6 * (3.0 / parameter.shape[-1]) ** 0.5
        low = -high
    if low == high:
        return np.full(shape, low, np.float32)
    digest = hashlib.sha256(f"{seed} {parameter.source}".encode()).digest()
    generator = np.random.Generator(np.random.SFC64(int.from_bytes(digest, "little")))
    array = generator.random(prod(shape), np.float32).reshape(shape)
    array *= high - low
    array += low
    return array

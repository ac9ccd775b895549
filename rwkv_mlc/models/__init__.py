"""One file per generation; a new one is found by its name."""

from __future__ import annotations

import dataclasses
import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from ..config import RWKVConfig, detect_config
from .parameter import Parameter, StateTensor, check_tensors

if TYPE_CHECKING:
    from ..weights.checkpoint import Checkpoint, LazyTensor

__all__ = ["Parameter", "StateTensor", "check_tensors", "model_module", "resolve"]


def model_module(config: RWKVConfig) -> ModuleType:
    """The generation's file: ``parameters(config)``, ``states(config)`` and ``forward(...)``."""
    return importlib.import_module(f".{config.model_type}", __package__)


def resolve(
    checkpoint: Checkpoint, head_size_divisor: int | None = None
) -> tuple[RWKVConfig, list[Parameter], dict[str, LazyTensor]]:
    """Detect the generation of a checkpoint and check every tensor against it.

    Returns the config, its parameters in order and the tensors by ``Parameter.source``. Raises UserError for a
    checkpoint of no known generation or whose tensors do not fit it."""
    config = detect_config(
        checkpoint.shapes, head_size_divisor or checkpoint.head_size_divisor, checkpoint.context_length
    )
    config = dataclasses.replace(config, rescale_every=checkpoint.rescale_every, float32=checkpoint.float32)
    module = model_module(config)
    tensors = checkpoint.tensors
    if hasattr(module, "sanitize"):
        tensors = module.sanitize(tensors)
    parameters = module.parameters(config)
    check_tensors(parameters, {name: tensor.shape for name, tensor in tensors.items()})
    return config, parameters, tensors

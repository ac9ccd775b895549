"""One file per generation; a new one is found by its name."""

from __future__ import annotations

import dataclasses
import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from ..config import GENERATIONS, RWKVConfig, detect_config
from ..errors import UserError
from .parameter import Parameter, StateTensor, check_tensors

if TYPE_CHECKING:
    from ..weights.checkpoint import Checkpoint, LazyTensor

__all__ = ["ModelOptions", "Parameter", "StateTensor", "check_tensors", "model_module", "resolve"]


def model_module(config: RWKVConfig) -> ModuleType:
    """The generation's file: ``parameters(config)``, ``states(config)`` and ``forward(...)``. Raises UserError for a
    generation that this version does not know."""
    if config.generation not in GENERATIONS:
        raise UserError(f"Unknown RWKV generation {config.generation!r}; this version knows {', '.join(GENERATIONS)}.")
    return importlib.import_module(f".{config.model_type}", __package__)


@dataclass(frozen=True)
class ModelOptions:
    """Wishes about a model's ``RWKVConfig``, by the names of its fields; None takes what the checkpoint itself says, and
    where it says nothing, the config's default. Raises UserError for numbers that mean nothing."""

    head_size_divisor: int | None = None
    context_length: int | None = None
    rescale_every: int = 0
    float32: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.head_size_divisor is not None and self.head_size_divisor < 1:
            raise UserError(f"--head-size-divisor must be at least 1, not {self.head_size_divisor}.")
        if self.rescale_every < 0:
            raise UserError(f"--rescale-every must be at least 1, or 0 for never, not {self.rescale_every}.")
        if self.context_length is not None and self.context_length < 1:
            raise UserError(f"--max-seq-len must be at least 1, or -1 for the model's own, not {self.context_length}.")


def resolve(
    checkpoint: Checkpoint, options: ModelOptions = ModelOptions()
) -> tuple[RWKVConfig, list[Parameter], dict[str, LazyTensor]]:
    """Detect the generation of a checkpoint and check every tensor against it.

    Returns the config, its parameters in order and the tensors by ``Parameter.source``. Raises UserError for a
    checkpoint of no known generation or whose tensors do not fit it."""
    config = detect_config(
        checkpoint.shapes,
        options.head_size_divisor or checkpoint.head_size_divisor,
        options.context_length or checkpoint.context_length,
    )
    config = dataclasses.replace(config, rescale_every=options.rescale_every, float32=options.float32)
    module = model_module(config)
    tensors = checkpoint.tensors
    if hasattr(module, "sanitize"):
        tensors = module.sanitize(tensors)
    parameters = module.parameters(config)
    check_tensors(parameters, {name: tensor.shape for name, tensor in tensors.items()})
    return config, parameters, tensors

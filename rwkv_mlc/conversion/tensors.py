"""A model's tensors as BlinkDL stores them, each in the type in which it is to be written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod

import ml_dtypes
import numpy as np

from ..config import RWKVConfig
from ..errors import UserError
from ..models import Generation, ModelOptions, generation_of, resolve
from ..weights.checkpoint import Checkpoint, LazyTensor

DTYPES = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
Progress = Callable[[int, int], None]
"""Told how many tensors of how many are written."""


def silent(done: int, total: int) -> None:
    """No progress."""


@dataclass(frozen=True)
class OutputTensor:
    """What is to be written as ``name``: an array of ``shape`` and ``dtype``, a key of ``DTYPES``, of the numbers that
    ``source`` has when it is read."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    source: LazyTensor

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * DTYPES[self.dtype].itemsize

    def bytes(self) -> memoryview:
        """Its little-endian bytes. Raises UserError for a value that is not finite, or that the type does not hold."""
        array, dtype = self.source.read(), DTYPES[self.dtype]
        extremes = np.array([array.min(), array.max()])
        if not np.isfinite(extremes).all():
            raise UserError(
                f"The tensor {self.name} holds NaN or infinite values; the checkpoint is damaged, get it again."
            )
        with np.errstate(over="ignore"):
            if not np.isfinite(extremes.astype(dtype).astype(np.float64)).all():
                raise UserError(
                    f"The tensor {self.name} holds {float(np.abs(extremes).max()):g}, which {self.dtype} does not; take "
                    "another --dtype."
                )
        stored = np.ascontiguousarray(array, dtype)
        return stored.reshape(-1).view(np.uint8).data


@dataclass(frozen=True)
class BlinkDLTensors:
    """A checkpoint's ``tensors`` under the names and with the shapes and values of a BlinkDL ``.pth``, in its order."""

    config: RWKVConfig
    generation: Generation
    tensors: dict[str, LazyTensor]

    @classmethod
    def of(cls, checkpoint: Checkpoint, options: ModelOptions = ModelOptions()) -> BlinkDLTensors:
        """Raises UserError as ``models.resolve``, and for a checkpoint whose values another program has rounded to a scheme."""
        if checkpoint.quantization is not None:
            raise UserError(
                f"{checkpoint.source} was converted in {checkpoint.quantization} and has lost the weights it came from; give "
                "the checkpoint that it was converted from."
            )
        config, parameters, _ = resolve(checkpoint, options)
        generation = generation_of(config)
        shapes = {parameter.source: parameter.source_shape or parameter.shape for parameter in parameters}
        order = {name: place for place, name in enumerate(_in_blinkdls_order(shapes))}
        arranged = generation.arrange(checkpoint.tensors)
        names = sorted(arranged, key=lambda name: order.get(name, len(order)))
        return cls(config, generation, {name: _shaped(arranged[name], shapes.get(name)) for name in names})

    def stored_as(self, dtype: str | None) -> dict[str, str]:
        """The type of every tensor: ``dtype``, or where that is None its own, and float32 for one in quantized blocks."""
        return {
            name: dtype or (tensor.dtype if tensor.dtype in DTYPES else "float32")
            for name, tensor in self.tensors.items()
        }


def _in_blinkdls_order(names: Iterable[str]) -> list[str]:
    """The head last."""
    return sorted(names, key=lambda name: name.startswith("head."))


def _shaped(tensor: LazyTensor, shape: tuple[int, ...] | None) -> LazyTensor:
    """With the axes of length 1 that BlinkDL's has."""
    if shape is None or tensor.shape == shape:
        return tensor
    return dataclasses.replace(tensor, shape=shape, read=lambda: tensor.read().reshape(shape))

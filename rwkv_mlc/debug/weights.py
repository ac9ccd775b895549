"""The weights that an artifact stores, beside those of the checkpoint that it should be of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ..artifact import Artifact
from ..models import ModelOptions, Parameter, resolve
from ..quantization.schemes import Scheme
from ..weights.checkpoint import Checkpoint
from ..weights.parameters import map_parameters, read_parameter
from .measure import relative


@dataclass(frozen=True)
class StoredWeights:
    """``stored`` are the tensors of the shards, by stored name."""

    parameters: list[Parameter]
    scheme: Scheme
    stored: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, artifact: Artifact) -> StoredWeights:
        """Raises UserError for a damaged artifact."""
        return cls(artifact.model_parameters, artifact.scheme, artifact.parameters())

    def by_source(self, source: str) -> Parameter:
        return next(p for p in self.parameters if p.source == source)


@dataclass(frozen=True)
class WeightDifference:
    """``name`` is the checkpoint's, ``relative_rms`` that of the weights, dequantized."""

    name: str
    relative_rms: float
    hint: str | None

    def sentence(self) -> str:
        much = f"{self.relative_rms:.1e} of their root mean square"
        text = f"{self.name} is stored with other values than the checkpoint's ({much})"
        return f"{text}: {self.hint}." if self.hint else f"{text}."


def different_weights(
    weights: StoredWeights,
    checkpoint: Checkpoint,
    progress: Callable[[int, int], None] = lambda done, total: None,
    options: ModelOptions = ModelOptions(),
) -> list[WeightDifference]:
    """What is not stored as the artifact's scheme rounds the checkpoint, in the model's order. Raises UserError for a
    checkpoint of no known generation and for weights that are not finite."""
    _, parameters, tensors = resolve(checkpoint, options)
    scheme = weights.scheme

    def check(parameter: Parameter) -> WeightDifference | None:
        array = read_parameter(parameter, tensors[parameter.source])
        expected = scheme.quantize(parameter, array)
        if all(np.array_equal(expected[name], weights.stored[name]) for name in expected):
            return None
        found = scheme.dequantize(parameter, weights.stored)
        rounded = scheme.dequantize(parameter, expected)
        return WeightDifference(parameter.source, relative(found, rounded), _hint(found, rounded))

    return [difference for difference in map_parameters(check, parameters, progress) if difference]


def _hint(found: np.ndarray, expected: np.ndarray) -> str | None:
    if found.ndim == 2 and found.shape[0] == found.shape[1] and relative(found.T, expected) < 1e-5:
        return "it is transposed"
    factor = float((found.astype(np.float64) * expected).sum() / (expected.astype(np.float64) ** 2).sum())
    if abs(abs(factor) - 1) > 1e-5 and relative(found, factor * expected) < 1e-5:
        return f"it is {factor:.4g} times what it should be"
    return None

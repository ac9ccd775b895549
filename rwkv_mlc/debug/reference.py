"""Dumps of the numpy reference, of a checkpoint's weights or of those that an artifact stores.

In float16 every named value is rounded, and becomes infinite where it does not fit, but for those of ``RWKVConfig.float32``;
what lies between them, sums and the state are float32, as on GPUs that compute in float16."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .. import reference
from ..artifact import Artifact
from ..config import RWKVConfig
from ..models import ModelOptions, Parameter, resolve
from ..quantization.schemes import Scheme
from ..schema import DumpHeader
from ..weights.checkpoint import Checkpoint
from ..weights.parameters import map_parameters, read_parameter
from .dump import Dump, Step, record
from .recipe import Recipe

Parameters = Mapping[str, np.ndarray]


def dump_checkpoint(
    checkpoint: Checkpoint,
    recipe: Recipe,
    scheme: Scheme | None = None,
    dtype: type = np.float64,
    options: ModelOptions = ModelOptions(),
) -> Dump:
    """What the reference computes in ``dtype`` with a checkpoint's weights, rounded by ``scheme`` where one is given.

    Raises UserError for a checkpoint of no known generation, a weight that is not finite, and as ``Recipe.check``."""
    config, parameters, tensors = resolve(checkpoint, options)

    def load(p: Parameter) -> np.ndarray:
        """Matrices in float32, which holds what checkpoints do: the products widen one at a time."""
        if scheme and p.role != "vector":
            return scheme.dequantize(p, scheme.quantize(p, read_parameter(p, tensors[p.source])))
        return p.convert(tensors[p.source].read(), _between(dtype) if p.role == "vector" else np.float32)

    loaded = dict(zip((p.name for p in parameters), map_parameters(load, parameters)))
    values = record(config, recipe, stepper(config, loaded, dtype))
    made_of = (checkpoint.name, checkpoint.sha256(), scheme.name if scheme else None)
    return Dump(header("reference", config, *made_of, dtype, recipe), values)


def dump_artifact(artifact: Artifact, recipe: Recipe, dtype: type = np.float64) -> Dump:
    """What the reference computes in ``dtype`` with the weights that an artifact stores. Raises UserError for a damaged
    artifact, and as ``Recipe.check``."""
    config = artifact.config
    values = record(config, recipe, stepper(config, artifact.dequantized_parameters(), dtype))
    made_of = (artifact.name, artifact.record.source_sha256, artifact.scheme.name)
    return Dump(header("reference", config, *made_of, dtype, recipe), values)


def stepper(config: RWKVConfig, parameters: Parameters, dtype: type = np.float64) -> Step:
    """The calls of the reference in ``dtype``."""
    state = None

    def step(tokens: Sequence[int], _single: bool) -> dict[str, np.ndarray]:
        nonlocal state
        found: dict[str, np.ndarray] = {}

        def keep(name: str, value: np.ndarray) -> np.ndarray:
            kept = value if config.is_float32(name) else value.astype(dtype, copy=False)
            found[name] = kept
            return kept.astype(value.dtype, copy=False)

        with np.errstate(over="ignore", invalid="ignore"):
            _, state = reference.forward(config, parameters, tokens, state, keep, _between(dtype))
        return found | {f"blocks.{layer}.state.{role}": array for (layer, role), array in state.items()}

    return step


def _between(dtype: type) -> type:
    """What is computed in where values are rounded to ``dtype``."""
    return np.float32 if dtype == np.float16 else dtype


def header(
    source: str, config: RWKVConfig, name: str, sha256: str, quantization: str | None, dtype: type, recipe: Recipe
) -> DumpHeader:
    return DumpHeader(
        source=source,
        name=name,
        sha256=sha256,
        config=config,
        quantization=quantization,
        activations=np.dtype(dtype).name,
        tokens=list(recipe.tokens),
        decoded=recipe.decoded,
        chunk=recipe.chunk,
    )

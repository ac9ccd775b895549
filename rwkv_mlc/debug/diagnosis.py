"""Where an artifact parts from the checkpoint that it should be built from: in what it stores, and in what it computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..artifact import Artifact
from ..models import ModelOptions
from ..schema import Family
from ..weights.checkpoint import Checkpoint
from .compare import Comparison, compare
from .dump import Dump
from .family import runner_of
from .library import dump_library
from .package import dump_package
from .recipe import Recipe
from .reference import dump_checkpoint
from .weights import StoredWeights, WeightDifference, different_weights


@dataclass(frozen=True)
class Diagnosis:
    """``found`` is the library's dump, ``right`` what it should be; ``weights`` are those stored with other values."""

    found: Dump
    right: Dump
    comparison: Comparison
    weights: list[WeightDifference]

    def write(self, folder: Path) -> None:
        """Keep the two dumps. Raises UserError as ``Dump.write``."""
        self.found.write(folder / "library")
        self.right.write(folder / self.right.header.source)


def diagnose(
    artifact: Artifact,
    checkpoint: Checkpoint,
    recipe: Recipe,
    device: str = "auto",
    *,
    family: Family | None = None,
    with_package: bool = False,
    rtol: float | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Diagnosis:
    """Dump the artifact's library on ``device``, as ``runner_of`` finds it, and the checkpoint, by the reference or by the
    ``rwkv`` package, and compare them as ``compare`` does, and the weights. ``tell`` hears what is being done.

    Raises UserError for a damaged artifact, a checkpoint of another model, and as ``runner_of`` and the two dumps do."""
    options = ModelOptions(
        head_size_divisor=artifact.record.head_size_divisor,
        rescale_every=artifact.config.rescale_every,
        float32=artifact.config.float32,
    )
    weights = StoredWeights.of(artifact)
    tell(f"Computing what {checkpoint.name} should give...")
    dump = dump_package if with_package else dump_checkpoint
    right = dump(checkpoint, recipe, artifact.scheme, options=options)
    tell(f"Dumping {artifact.name}...")
    found = dump_library(artifact, runner_of(artifact, device, family), recipe)
    tell("Comparing...")
    comparison = compare(found, right, rtol, weights)
    return Diagnosis(found, right, comparison, different_weights(weights, checkpoint, options=options))

"""Which scorer runs what a user has named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from ..artifact import Artifact, artifacts_in, is_artifact, no_artifact
from ..errors import UserError
from .scorer import Scorer

Runner = Literal["reference", "rwkv", "transformers"]
RUNNERS: tuple[Runner, ...] = ("reference", "rwkv", "transformers")


def open_scorer(
    path: str,
    runner: Runner | None = None,
    *,
    device: str = "auto",
    threads: int | None = None,
    vocabulary: Path | None = None,
    trust_remote_code: bool = False,
) -> Scorer:
    """An artifact runs on its library unless ``runner`` is "reference", a checkpoint on the reference unless it says otherwise.

    Raises UserError for what is neither, for a runner that it does not have or whose packages are not installed, and as
    ``Engine``."""
    if is_artifact(path):
        if runner is None:
            from .compiled import CompiledScorer

            return CompiledScorer.open(Path(path), device, threads)
        if runner == "reference":
            from .reference import ReferenceScorer

            return ReferenceScorer.of_artifact(Artifact.open(path))
        raise UserError(
            f"{path} is an artifact, which --with {runner} cannot run; leave that out, or name its checkpoint."
        )
    if artifacts_in(Path(path)):
        raise no_artifact(Path(path))

    from ..weights import open_checkpoint
    from .reference import ReferenceScorer

    checkpoint = open_checkpoint(path)
    if runner == "rwkv":
        return _installed("rwkv", "rwkv", _package)(checkpoint, vocabulary)
    if runner == "transformers":
        return _installed("transformers", "transformers torch", _transformers)(
            checkpoint, vocabulary, trust_remote_code
        )
    return ReferenceScorer.of_checkpoint(checkpoint, vocabulary)


def _package() -> Callable[..., Scorer]:
    from .package import PackageScorer

    return PackageScorer.of_checkpoint


def _transformers() -> Callable[..., Scorer]:
    from .huggingface import TransformersScorer

    return TransformersScorer.of_checkpoint


def _installed(runner: Runner, packages: str, load: Callable[[], Callable[..., Scorer]]) -> Callable[..., Scorer]:
    try:
        return load()
    except ImportError as error:
        raise UserError(
            f"--with {runner} needs packages that are not installed ({error}); pip install {packages}."
        ) from None

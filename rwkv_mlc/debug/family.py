"""Which library of an artifact is dumped: its own, or one of another family, which is compiled for the purpose."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ..artifact import Artifact
from ..compiler.link import check_tools, export_library
from ..compiler.pipeline import compile_module
from ..compiler.targets import resolve_target
from ..engine.devices import choose_device, open_device, target_of
from ..engine.engine import Engine
from ..engine.runner import Runner
from ..interfaces.module import build_module
from ..schema import Family


def runner_of(artifact: Artifact, device: str = "auto", family: Family | None = None) -> Runner:
    """What runs the artifact's library for ``device``, or, where that is not of the ``family`` asked for, one that is, which is
    compiled here and not kept: what one family keeps to itself, the other shows.

    Raises UserError where a tool is missing that compiles, and as ``Engine``."""
    device, libraries = choose_device(device, artifact.libraries()), artifact.libraries()
    own = libraries.get(target_of(device))
    if family is None or (own and own.family == family):
        return Engine(artifact.path, device).runner
    opened, target = open_device(device), resolve_target(target_of(device))
    check_tools(target, target.suffix)
    module = build_module(artifact.config, artifact.scheme, target, family=family)
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / f"{family}{target.suffix}"
        export_library(compile_module(module, target), target, library)
        stored, chunk = artifact.stored_tensors(), artifact.chat_config.prefill_chunk_size
        return Runner(library, stored, opened, chunk)

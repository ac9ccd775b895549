from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock
from reciter import write_reciter

from rwkv_mlc import Engine
from rwkv_mlc.cli.main import main

DEMO = Path(__file__).parents[1] / "configs" / "demo" / "rwkv-5-village"


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory) -> Path:
    """A folder for artifacts, one for all the processes of a test run."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if own.name.startswith("popen-") else own


@pytest.fixture(scope="session")
def demo(artifacts) -> Path:
    """The bundled RWKV-5 model in q0f32, compiled for this machine; not to be changed."""
    return build(DEMO, artifacts)


@pytest.fixture(scope="session")
def reciter(artifacts) -> Path:
    """A model whose greedy text is known (``reciter.RECITED``), compiled for this machine; not to be changed."""
    checkpoint = artifacts / "reciter.safetensors"
    with FileLock(f"{checkpoint}.lock"):
        if not checkpoint.exists():
            write_reciter(checkpoint)
    return build(checkpoint, artifacts)


def build(checkpoint: Path, artifacts: Path) -> Path:
    built = artifacts / "dist" / f"{checkpoint.stem}-q0f32"
    with FileLock(artifacts / f"{built.name}.lock"):
        if not built.exists():
            command = ["build", "--model", str(checkpoint), "--quantization", "q0f32"]
            assert main([*command, "--artifact-path", str(built.parent)]) == 0
    return built


@pytest.fixture(scope="module")
def engine(demo) -> Engine:
    return Engine(demo)


@pytest.fixture(scope="module")
def reciting(reciter) -> Engine:
    return Engine(reciter)

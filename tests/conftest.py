from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from filelock import FileLock

from rwkv_mlc import Engine
from rwkv_mlc.bench import limits, timing
from rwkv_mlc.cli.faults import TRACEBACKS
from rwkv_mlc.cli.main import main
from rwkv_mlc.compiler import cuda
from rwkv_mlc.engine.devices import open_device
from rwkv_mlc.engine.runner import Runner
from support import kernel_build
from support.aarch64 import Machine
from support.compiled import Model, in_memory
from support.cuda_device import VISIBLE, CpuCompiler, CudaOnCpu, load
from support.paths import DEMO
from support.reciter import write_reciter
from support.vulkan_kernels import vulkan_device

signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # which shells have those ignore that they start in the background
pytest_plugins = ["support.proofs"]
os.environ[TRACEBACKS] = "1"
LONG = ("test_device_matrix.py", "test_benchmark_tools.py", "test_vulkan_size.py")
"""Files whose single tests take half a minute and more."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """They come first: begun last they would leave the other processes of a run idle at its end."""
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory) -> Path:
    """A folder for artifacts, one for all the processes of a test run."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if own.name.startswith("popen-") else own


@pytest.fixture(scope="session")
def aarch64(request) -> Machine:
    """An aarch64 with every feature that qemu knows; skips where there is no qemu."""
    return Machine(request.config.cache.mkdir("aarch64"))


@pytest.fixture(scope="module")
def cuda_device(request) -> Iterator[CudaOnCpu]:
    """A CUDA device, on which runs what is compiled for CUDA meanwhile. Tests of other modules do not see it."""
    device = load(request.config.cache.mkdir("cuda_on_cpu"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VISIBLE, "1")
        patch.setattr(cuda, "find_compiler", lambda _: CpuCompiler(device))
        yield device


@pytest.fixture(scope="session", params=["host", "aarch64"])
def build_kernels(request, tmp_path_factory) -> Callable:
    """``kernel_build.build`` for this machine and for an aarch64."""
    if request.param == "host":
        return kernel_build.build
    machine = request.getfixturevalue("aarch64")
    return lambda functions: machine.build(functions, tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="session")
def libraries(artifacts) -> Path:
    """Where this run's libraries lie, whichever process compiled them."""
    path = artifacts / "libraries"
    path.mkdir(exist_ok=True)
    return path


@pytest.fixture
def compiled(libraries) -> Callable[..., Model]:
    """Compile tensors or a checkpoint: (checkpoint, scheme, target, runner, options, functions) -> Model, the last four
    as in ``Model.of``."""

    def build(checkpoint, scheme: str, *more, **named) -> Model:
        checkpoint = in_memory(checkpoint) if isinstance(checkpoint, dict) else checkpoint
        return Model.of(checkpoint, scheme, libraries, *more, **named)

    return build


@pytest.fixture
def on_gpu(request, compiled) -> Callable[..., Model]:
    """Compile tensors or a checkpoint for the GPU that the test names, Vulkan or CUDA: (checkpoint, scheme, options,
    functions) -> Model."""
    match request.param:
        case "vulkan":
            target, device = "vulkan", vulkan_device()
        case "cuda":
            request.getfixturevalue("cuda_device")
            target, device = "cuda -arch=sm_80", open_device("cuda")
    return lambda checkpoint, scheme, *more, **named: compiled(
        checkpoint, scheme, target, partial(Runner, device=device), *more, **named
    )


@pytest.fixture
def within(request, record_property) -> Callable[[str, float, float], None]:
    """Print a measured error beside its bound and hold it to that."""

    def check(what: str, found: float, bound: float) -> None:
        record_property(what, float(found))  # which other processes are told
        print(f"{request.node.name}: {what} {found:.1e} (bound {bound:.0e})")
        assert found < bound, what

    return check


@pytest.fixture
def quick(monkeypatch) -> None:
    """Benchmarks measure little and few times: what they say of the machine does not matter."""
    monkeypatch.setattr(timing, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(timing, "MIN_RUNS", 2)
    monkeypatch.setattr(limits, "STREAM_BYTES", 1 << 22)
    monkeypatch.setattr(limits, "GEMM_SIZE", 64)


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
            command = ["build", "--model", str(checkpoint), "--quantization", "q0f32", "--target", "llvm"]
            assert main([*command, "--artifact-path", str(built.parent)]) == 0
    return built


@pytest.fixture(scope="module")
def engine(demo) -> Engine:
    return Engine(demo)


@pytest.fixture(scope="module")
def reciting(reciter) -> Engine:
    return Engine(reciter)

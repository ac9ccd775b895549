"""What this machine can do at most: the limits beside which speeds are read."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import numpy as np

from ..engine.engine import Engine
from ..engine.tvm_runtime import empty
from .timing import seconds_of

STREAM_BYTES = 1 << 30
STREAM_BLOCKS = 256
GEMM_SIZE = 2048
PASSES = 3  # of which the best counts
GEMM_LIBRARY = "torch" if importlib.util.find_spec("torch") else "numpy"


def read_bandwidth(engine: Engine) -> Callable[[], float]:
    """Measures bytes a second that the library's threads read from memory, streaming over 1 GiB."""
    data = empty((STREAM_BLOCKS, STREAM_BYTES // 4 // STREAM_BLOCKS), "float32", engine.runner.device)
    np.from_dlpack(data)[:] = 1.0
    stream = engine.runner.vm["stream"]
    stream(data)
    return lambda: STREAM_BYTES / min(seconds_of(lambda: stream(data)) for _ in range(PASSES))


def gemm_peak(threads: int) -> Callable[[], float]:
    """Measures float32 operations a second of a large matrix product by ``GEMM_LIBRARY``."""
    if GEMM_LIBRARY == "torch":
        import torch

        torch.set_num_threads(threads)
        matrix = torch.randn(GEMM_SIZE, GEMM_SIZE)
    else:
        matrix = np.random.default_rng(0).standard_normal((GEMM_SIZE, GEMM_SIZE), np.float32)
    matrix @ matrix
    return lambda: 2.0 * GEMM_SIZE**3 / min(seconds_of(lambda: matrix @ matrix) for _ in range(PASSES))

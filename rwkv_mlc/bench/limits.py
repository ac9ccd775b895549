"""What this machine, or a device of it, can do at most: the limits beside which speeds are read."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..engine.engine import Engine
from ..engine.tvm_runtime import CPU, Device, Tensor, empty, synchronize, tensor

STREAM_BYTES = 1 << 30
STREAM_ROW = 1 << 16  # elements that a thread, or a block of them, adds up
GEMM_SIZE = 2048
CUDA_GEMM_SIZE = 8192
PROBE_ROWS, PROBE_SECONDS = (64, 4096), 0.05  # of a device's own product, as many rows as take so long
HAS_TORCH = importlib.util.find_spec("torch") is not None
PASSES = 3  # of which the best counts
DEVICE_CALLS = 8  # in a row, as the device idles while one waits for it
SLOW_SECONDS = 0.1  # of a call on a device, which then says enough


def read_bandwidth(engine: Engine) -> Callable[[], float]:
    """Measures bytes a second that the library's threads, or the device, read from memory, streaming over 1 GiB; less where
    a device's kernels reach no such buffer."""
    stream, device = engine.runner.vm["stream"], engine.runner.device
    data = stream_data(engine, STREAM_BYTES)
    nbytes = 4 * int(np.prod(data.shape))
    return lambda: nbytes / _best_seconds(lambda: stream(data), device)


def stream_data(engine: Engine, nbytes: int) -> Tensor:
    """A tensor of ones that has been read once, of at most ``nbytes``."""
    runner = engine.runner
    try:
        data = empty((nbytes // 4 // STREAM_ROW, STREAM_ROW), "float32", runner.device)
        runner.vm["fill"](data)
        runner.vm["stream"](data)
        synchronize(runner.device)
        return data
    except (RuntimeError, ValueError):  # what runtimes say of a tensor that is too large
        if runner.device == CPU or nbytes // 2 < 4 * STREAM_ROW:
            raise
    return stream_data(engine, nbytes // 2)


@dataclass(frozen=True)
class GemmPeak:
    """``measure`` gives operations a second of a large matrix product, ``of`` says whose product it is and of what."""

    of: str
    measure: Callable[[], float]

    @classmethod
    def on(cls, engine: Engine) -> GemmPeak:
        """In float32 on a CPU, else in what the library's matrices read: by PyTorch where it can use the device, by numpy on
        a CPU without it, and by the library itself on other devices."""
        device = engine.runner.device
        if device == CPU:
            return _by_torch(device, engine.runner.pool.threads) if HAS_TORCH else _by_numpy()
        if device.type == "cuda" and _torch_has_cuda():
            return _by_torch(device, engine.runner.pool.threads)
        return _by_library(engine)


def _torch_has_cuda() -> bool:
    if not HAS_TORCH:
        return False
    import torch

    return torch.cuda.is_available()


def _by_torch(device: Device, threads: int) -> GemmPeak:
    import torch

    if device == CPU:
        torch.set_num_threads(threads)
        matrix, of = torch.randn(GEMM_SIZE, GEMM_SIZE), "torch"
    else:
        shape = (CUDA_GEMM_SIZE, CUDA_GEMM_SIZE)
        matrix, of = torch.randn(shape, dtype=torch.float16, device=f"cuda:{device.index}"), "torch, float16"
    return GemmPeak(of, _rate(2.0 * matrix.shape[0] ** 3, lambda: matrix @ matrix, device))


def _by_numpy() -> GemmPeak:
    matrix = np.random.default_rng(0).standard_normal((GEMM_SIZE, GEMM_SIZE), np.float32)
    return GemmPeak("numpy", _rate(2.0 * GEMM_SIZE**3, lambda: matrix @ matrix, CPU))


def _by_library(engine: Engine) -> GemmPeak:
    from ..graph.ops.gpu import PEAK_SIZE  # here, as it loads the compiler

    device, dtype = engine.runner.device, engine.artifact.scheme.float_dtype
    product, rng = engine.runner.vm["matmul_peak"], np.random.default_rng(0)
    least, most = PROBE_ROWS
    weight = tensor(rng.standard_normal((PEAK_SIZE, PEAK_SIZE), np.float32).astype(dtype), device)

    def rate(rows: int) -> Callable[[], float]:
        x = tensor(rng.standard_normal((1, rows, PEAK_SIZE), np.float32).astype(dtype), device)
        product(x, weight)
        return _rate(2.0 * rows * PEAK_SIZE**2, lambda: product(x, weight), device)

    in_time = int(rate(least)() * PROBE_SECONDS / (2.0 * PEAK_SIZE**2))
    return GemmPeak(f"the library, {dtype}", rate(min(max(in_time, least), most)))


def _rate(operations: float, call: Callable[[], object], device: Device) -> Callable[[], float]:
    call()
    return lambda: operations / _best_seconds(call, device)


def _best_seconds(call: Callable[[], object], device: Device) -> float:
    """The best time of one call; a device that is fast enough gets several at once."""

    def run(calls: int) -> float:
        began = time.perf_counter()
        for _ in range(calls):
            call()
        synchronize(device)
        return (time.perf_counter() - began) / calls

    first = run(1)
    if device != CPU and first > SLOW_SECONDS:
        return first
    return min(first, *(run(1 if device == CPU else DEVICE_CALLS) for _ in range(PASSES - 1)))

"""Speed of an artifact, beside the limits of the machine it runs on."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tvm.runtime import empty

from ..engine.engine import Engine
from ..engine.threads import start_threads
from ..errors import UserError

STREAM_BYTES = 1 << 30
STREAM_BLOCKS = 256
GEMM_SIZE = 2048
MIN_SECONDS = 2.0
MIN_RUNS = 5


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median and the tenth and ninetieth percentile of ``runs`` calls."""

    median: float
    p10: float
    p90: float
    runs: int

    @classmethod
    def of(cls, call: Callable[[], object], min_runs: int = 1) -> Timing:
        """Call it once to warm up, then at least ``min_runs`` times, ``MIN_RUNS`` times and ``MIN_SECONDS`` seconds."""
        call()
        seconds: list[float] = []
        while len(seconds) < max(min_runs, MIN_RUNS) or sum(seconds) < MIN_SECONDS:
            began = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - began)
        p10, p90 = np.quantile(seconds, (0.1, 0.9))
        return cls(statistics.median(seconds), float(p10), float(p90), len(seconds))

    def rate(self, amount: float) -> dict[str, float]:
        """``amount`` a second at the median and at both percentiles."""
        return {"median": amount / self.median, "p10": amount / self.p90, "p90": amount / self.p10}


def read_bandwidth(engine: Engine) -> float:
    """Bytes a second that the library's threads read from memory, streaming over 1 GiB; the best of several passes."""
    data = empty((STREAM_BLOCKS, STREAM_BYTES // 4 // STREAM_BLOCKS), "float32", engine.runner.device)
    np.from_dlpack(data)[:] = 1.0
    stream = engine.runner.vm["stream"]
    return STREAM_BYTES / Timing.of(lambda: stream(data)).p10


def gemm_peak(threads: int) -> tuple[float, str]:
    """Float32 operations a second of a large matrix product and the library that made it: PyTorch where installed, else
    numpy; the best of several."""
    operations = 2.0 * GEMM_SIZE**3
    try:
        import torch
    except ImportError:
        a = np.random.default_rng(0).standard_normal((GEMM_SIZE, GEMM_SIZE), np.float32)
        return operations / Timing.of(lambda: a @ a).p10, "numpy"
    torch.set_num_threads(threads)
    matrix = torch.randn(GEMM_SIZE, GEMM_SIZE)
    return operations / Timing.of(lambda: matrix @ matrix).p10, "torch"


def bench(
    path: Path | str,
    device: str = "auto",
    prefill: Sequence[int] = (128, 512),
    decode: int = 64,
    batch: int = 1,
    threads: int | None = None,
    breakdown: bool = False,
) -> dict:
    """Load an artifact and time it; the keys are those of docs/benchmarks.md.

    ``prefill`` are prompt lengths, ``decode`` the least number of single-token steps, ``batch`` the sequences decoded
    together; ``breakdown`` adds the time of every kernel. Raises UserError for a count below 1."""
    if min([*prefill, decode, batch, 1 if threads is None else threads]) < 1:
        raise UserError("Lengths, steps, batch and threads must be at least 1.")
    if threads:
        start_threads(threads)
    began = time.perf_counter()
    engine = Engine(path, device)
    state = engine.runner.new_state(batch)
    slots = list(range(batch))
    engine.runner.run("prefill", [[1]] * batch, state, slots)
    load_seconds = time.perf_counter() - began

    step = "decode" if batch == 1 else "batch_decode"
    decoding = Timing.of(lambda: engine.runner.run(step, [[1]] * batch, state, slots), decode)
    prefills = {}
    for length in prefill:
        prompt = np.arange(length) % engine.config.vocab_size
        prefills[length] = Timing.of(partial(engine.prefill, prompt, state))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    bandwidth = read_bandwidth(engine)
    peak, peak_of = gemm_peak(engine.runner.threads)
    weight_bytes, operations = _work(engine)
    result = {
        "model": engine.name,
        "threads": engine.runner.threads,
        "load_seconds": load_seconds,
        "peak_memory_bytes": memory,
        "weight_bytes": weight_bytes,
        "read_bandwidth": bandwidth,
        "gemm_peak": peak,
        "gemm_peak_of": peak_of,
        "decode": {
            "batch": batch,
            "runs": decoding.runs,
            "tokens_per_second": decoding.rate(batch),
            "bandwidth_fraction": weight_bytes / decoding.median / bandwidth,
        },
        "prefill": [
            {
                "tokens": length,
                "runs": timing.runs,
                "tokens_per_second": timing.rate(length),
                "gemm_fraction": length * operations / timing.median / peak,
            }
            for length, timing in prefills.items()
        ],
    }
    if breakdown:
        result["breakdown"] = {"decode": kernel_times(engine, "decode", [1])}
        for length in prefill:
            result["breakdown"][f"prefill {length}"] = kernel_times(engine, "prefill", [1] * length)
    return result


def kernel_times(engine: Engine, function: str, tokens: Sequence[int], runs: int = 10) -> list[dict]:
    """Time of every kernel of a call, longest first: name, calls and the sum of their best seconds over ``runs`` calls.

    The instrument costs about a microsecond a call, which counts where kernels are that short."""
    state, vm = engine.runner.new_state(), engine.runner.vm
    seconds: dict[str, list[float]] = {}
    began = [0.0]

    def instrument(_, name, before, _ret, *_args):
        if before:
            began[0] = time.perf_counter()
        else:
            seconds.setdefault(name, []).append(time.perf_counter() - began[0])

    engine.runner.run(function, [tokens], state)
    vm.set_instrument(instrument)
    for _ in range(runs):
        engine.runner.run(function, [tokens], state)
    vm.set_instrument(lambda *_: 0)
    rows = []
    for name, values in seconds.items():
        calls = len(values) // runs
        best = np.reshape(values, (runs, calls)).min(axis=0)
        rows.append({"kernel": name, "calls": calls, "seconds": float(best.sum())})
    return sorted(rows, key=lambda row: -row["seconds"])


def _work(engine: Engine) -> tuple[int, float]:
    """Weight bytes read for a token, the embedding's row left out, and matrix operations of a prompt token, without the
    head, which only the last token needs."""
    stored = {
        p.name: [(shape, dtype) for shape, dtype in engine.artifact.scheme.stored(p).values()]
        for p in engine.artifact.model_parameters
        if p.role != "embedding"
    }
    nbytes = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for forms in stored.values() for shape, dtype in forms)
    operations = sum(2.0 * np.prod(p.shape) for p in engine.artifact.model_parameters if p.role == "linear")
    return nbytes, float(operations)

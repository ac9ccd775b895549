"""Speed of an artifact, beside the limits of the machine it runs on."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from pathlib import Path

import numpy as np

from ..engine.engine import Engine
from ..errors import UserError
from ..machine.memory import available_memory
from ..models import Parameter
from ..schema import ROUNDED
from .answers import time_answers
from .breakdown import breakdown as time_breakdown
from .busy import busy_processes
from .limits import GemmPeak, read_bandwidth
from .memory import device_memory, peak_memory
from .prefill_error import prefill_error
from .sparsity import hidden_units
from .timing import Compared

TEXT_TOKENS = 64


def bench(
    path: Path | str,
    device: str = "auto",
    prefill: Sequence[int] = (128, 512),
    decode: int = 64,
    batch: int = 1,
    threads: int | None = None,
    breakdown: bool = False,
    busy: int = 0,
    tell: Callable[[int, int, str], None] = lambda number, total, what: None,
) -> dict:
    """Load an artifact and time it; the keys are those of docs/benchmarks.md.

    ``prefill`` are prompt lengths, ``decode`` the least number of single-token steps, ``batch`` the sequences decoded
    together; ``threads`` run the kernels on a CPU; ``breakdown`` adds where the time goes; ``busy`` other processes burn a
    core each while anything is timed. ``tell`` is told which step begins, from 1, of how many, and what it is. Raises
    UserError for a count below 1, and for less than none of these processes."""
    if min([*prefill, decode, batch, 1 if threads is None else threads]) < 1:
        raise UserError("Lengths, steps, batch and threads must be at least 1.")
    if busy < 0:
        raise UserError("There can be no fewer than 0 busy processes.")
    with busy_processes(busy):
        return _bench(path, device, prefill, decode, batch, threads, breakdown, tell) | {"busy": busy}


def _bench(
    path: Path | str,
    device: str,
    prefill: Sequence[int],
    decode: int,
    batch: int,
    threads: int | None,
    breakdown: bool,
    tell: Callable[[int, int, str], None],
) -> dict:
    steps = itertools.count(1)
    lengths = len(set(prefill))
    total = 4 + lengths + (1 + lengths) * breakdown

    def begin(what: str) -> None:
        tell(next(steps), total, what)

    begin(f"loading {Path(path).name}")
    began = time.perf_counter()
    engine = Engine(path, device, threads=threads)
    engine.prefill([1], engine.new_state())
    load_seconds = time.perf_counter() - began

    _check_batch(engine, batch)
    begin("writing a text, and reading prompts of each length once")
    text = own_text(engine, TEXT_TOKENS)
    step = _decoding(engine, text, batch)
    prompts = {length: partial(engine.prefill, np.resize(text, length), engine.new_state()) for length in prefill}
    for call in (step, *prompts.values()):
        call()
    on_device = device_memory(engine.runner.device)
    memory = peak_memory() if on_device is None else on_device

    stored = bytes_read(engine)
    weight_bytes = sum(stored.values())
    operations = operations_of(engine.artifact.model_parameters)
    begin(f"decoding, batch {batch}, and reading memory")
    decoding = Compared.of(step, read_bandwidth(engine), decode)
    peak, compared = GemmPeak.on(engine), {}
    for length, call in prompts.items():
        begin(f"prompts of {length} tokens, and a large product")
        compared[length] = Compared.of(call, peak.measure)
    begin(f"generating, batch {batch}")
    result = {
        "model": engine.name,
        "quantization": engine.artifact.scheme.name,
        "random_weights": engine.artifact.record.source_format == "random",
        "device": str(engine.runner.device),
        "threads": engine.runner.pool.threads,
        "thread_pool": engine.runner.pool.owner,
        "load_seconds": load_seconds,
        "peak_memory_bytes": memory,
        "peak_memory_of": "process" if on_device is None else "device",
        "weight_bytes": weight_bytes,
        "read_bandwidth": float(np.median(decoding.limits)),
        "gemm_peak": float(np.median([limit for prefill in compared.values() for limit in prefill.limits])),
        "gemm_peak_of": peak.of,
        "decode": {
            "batch": batch,
            "runs": decoding.timing.runs,
            "tokens_per_second": decoding.timing.rate(batch),
            "read_bandwidth": decoding.limits,
            "bandwidth_fraction": weight_bytes * decoding.unit_fraction,
        },
        "generate": time_answers(engine, text, batch, decode),
        "prefill": [
            {
                "tokens": length,
                "runs": reading.timing.runs,
                "tokens_per_second": reading.timing.rate(length),
                "gemm_peak": reading.limits,
                "gemm_fraction": length * operations * reading.unit_fraction,
            }
            for length, reading in compared.items()
        ],
        "prefill_activations": engine.library.prefill_activations,
    }
    if batch == 1 and (units := hidden_units(engine, text)):
        values = [stored[p.name] for p in engine.artifact.model_parameters if p.sparse_input]
        read = weight_bytes - sum(unit.unread * nbytes for unit, nbytes in zip(units, values))
        result["decode"] |= {
            "hidden_zeros": [unit.zero for unit in units],
            "read_bytes": read,
            "read_fraction": read * decoding.unit_fraction,
        }
    if engine.library.prefill_activations in ROUNDED:
        result["prefill_error"] = prefill_error(engine)
    if breakdown:
        begin("kernels of decoding")
        result["breakdown"] = {"decode": time_breakdown(engine, step, batch, batch)}
        for length, call in prompts.items():
            begin(f"kernels of prompts of {length} tokens")
            result["breakdown"][f"prefill {length}"] = time_breakdown(engine, call, length)
    return result


def _check_batch(engine: Engine, batch: int) -> None:
    """Raises UserError for more sequences than this machine's memory has room for the states of."""
    needed, available = batch * engine.runner.metadata.state_bytes, available_memory()
    if available is not None and needed > available:
        raise UserError(
            f"The states of {batch} sequences take {needed / 1e9:.1f} GB, and {available / 1e9:.1f} GB are free; give a "
            "smaller batch."
        )


def own_text(engine: Engine, count: int) -> list[int]:
    """``count`` tokens as the model itself writes them from the beginning of a document on, with the artifact's own
    sampling settings; the same ones each time."""
    tokens: list[int] = []
    while len(tokens) < count:
        answer = engine.generate("", max_tokens=count, seed=len(tokens), stop=())
        tokens += [*answer.prompt, *answer.tokens]
    return tokens[:count]


def _decoding(engine: Engine, text: Sequence[int], batch: int) -> Callable[[], object]:
    """A call that reads the next token of ``text``, which begins anew after its end, in each of ``batch`` sequences."""
    function = "decode" if batch == 1 else "batch_decode"
    state, tokens = engine.runner.new_state(batch), itertools.cycle(text)
    return lambda: engine.runner.run(function, [[next(tokens)]] * batch, state)


def bytes_read(engine: Engine) -> dict[str, int]:
    """Bytes that are stored of every parameter that a token reads as a whole: all but the embedding."""
    scheme = engine.artifact.scheme
    return {
        p.name: sum(prod(shape) * np.dtype(dtype).itemsize for shape, dtype in scheme.stored(p).values())
        for p in engine.artifact.model_parameters
        if p.role != "embedding"
    }


def operations_of(parameters: Sequence[Parameter]) -> float:
    """Matrix operations of a prompt token, without the head, which only the last token needs."""
    return sum(2.0 * prod(p.shape) for p in parameters if p.role in ("matrix", "kept", "low_rank"))

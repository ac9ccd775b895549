"""Where the time of a call goes: to kernels, by what they do and in which layer, and to what lies around them.

What a kernel does is told by the parameters among its arguments, so that one that was merged from others counts as
well.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ..engine.engine import Engine
from ..engine.runner import Runner
from ..engine.tvm_runtime import synchronize
from ..models.parameter import NORMS
from .timing import is_enough, seconds_of

HALF_BLOCKS = {
    "pre_ln": None,  # before the first half block
    "ln1": "time_mixing",
    "attention": "time_mixing",
    "ln2": "channel_mixing",
    "feed_forward": "channel_mixing",
}
"""Which half block reads a parameter, by the part of its block that it belongs to."""
BUILTIN = "vm.builtin."
MULTIPLIED = ("matrix", "kept", "low_rank", "head")  # roles of parameters


@dataclass(frozen=True)
class Argument:
    """A parameter as a kernel reads it: ``place`` is its layer and half block, None outside of all layers; ``nbytes``
    counts what is stored of it, nothing for the embedding, of which a kernel reads a row; ``elements`` are those of a
    matrix."""

    group: str
    place: tuple[int, str] | None
    nbytes: int
    elements: int


@dataclass(frozen=True)
class Rows:
    """How many rows the matrices multiply in a run of the library: those of the blocks, and the head."""

    blocks: float
    head: int


@dataclass(frozen=True)
class KernelCall:
    """One of the kernel calls that make up a call. A kernel without parameters works where the one before it does;
    ``operations`` are those of its matrices, a multiplication and an addition counting as two."""

    kernel: str
    group: str
    place: tuple[int, str] | None
    nbytes: int
    operations: float

    @classmethod
    def of(cls, name: str, parameters: list[Argument], previous: KernelCall | None, rows: Rows) -> KernelCall:
        places = [p.place for p in parameters if p.place]
        inherited = previous.place if previous and not parameters else None
        return cls(
            kernel=name,
            group=_group(name, parameters),
            place=places[0] if places else inherited,
            nbytes=sum(p.nbytes for p in parameters),
            operations=sum(2.0 * p.elements * (rows.head if p.group == "head" else rows.blocks) for p in parameters),
        )


def _group(kernel: str, parameters: list[Argument]) -> str:
    """What a kernel's parameters are for, beside the norm before them; the half block where they are for several
    things, and the kernel's own name where there are none."""
    groups = {p.group for p in parameters}
    groups = groups - {NORMS} or groups
    if len(groups) > 1:
        groups = {p.place[1] for p in parameters if p.place}
    return groups.pop() if len(groups) == 1 else kernel.rstrip("_0123456789")


def breakdown(engine: Engine, call: Callable[[], object], tokens: int, sequences: int = 1) -> dict:
    """Medians over repetitions of ``call``, which reads ``tokens`` tokens of ``sequences`` sequences in one or more
    runs of the library; the keys are those of docs/benchmarks.md.

    Calls with and without the instrument that times the kernels take turns; it costs about a microsecond a kernel,
    which counts as the kernel's. On a device
    it waits before and after each kernel, so that ``kernel_seconds`` may be more than the whole call takes, in which kernels
    follow one another without the host."""
    kernels = _kernel_calls(engine, call, tokens, sequences)
    plain: list[float] = []
    traced: list[list[float]] = []
    while not is_enough(plain):
        plain.append(seconds_of(call))
        traced.append(_kernel_seconds(engine, call))
    seconds = [float(value) for value in np.median(traced, axis=0)]
    layers = [{"time_mixing": 0.0, "channel_mixing": 0.0} for _ in range(engine.config.num_hidden_layers)]
    for kernel, value in zip(kernels, seconds):
        if kernel.place:
            layer, half_block = kernel.place
            layers[layer][half_block] += value
    total = float(np.median(plain))
    return {
        "seconds": total,
        "kernel_seconds": sum(seconds),
        "outside_seconds": total - sum(seconds),
        "groups": _table("group", kernels, seconds),
        "layers": layers,
        "kernels": _table("kernel", kernels, seconds),
    }


def _table(key: str, kernels: list[KernelCall], seconds: list[float]) -> list[dict]:
    """One row for each value of the attribute ``key``, the longest first."""
    rows: dict[str, dict] = {}
    for kernel, value in zip(kernels, seconds):
        name = getattr(kernel, key)
        row = rows.setdefault(name, {key: name, "calls": 0, "seconds": 0.0, "bytes": 0, "operations": 0.0})
        row["calls"] += 1
        row["seconds"] += value
        row["bytes"] += kernel.nbytes
        row["operations"] += kernel.operations
    return sorted(rows.values(), key=lambda row: -row["seconds"])


def _kernel_seconds(engine: Engine, call: Callable[[], object]) -> list[float]:
    """Seconds of each kernel call, in order, from when the device has nothing to do until it has done the kernel."""
    seconds: list[float] = []
    began = 0.0

    def instrument(_function, name, before, _result, *_args):
        nonlocal began
        if name.startswith(BUILTIN):
            return
        synchronize(engine.runner.device)
        if before:
            began = time.perf_counter()
        else:
            seconds.append(time.perf_counter() - began)

    with instrumented(engine.runner, instrument):
        call()
    return seconds


def _kernel_calls(engine: Engine, call: Callable[[], object], tokens: int, sequences: int) -> list[KernelCall]:
    arguments = _arguments(engine)
    recorded: list[tuple[str, list[Argument]]] = []

    def instrument(_function, name, before, _result, *args):
        if before and not name.startswith(BUILTIN):
            recorded.append((name, [arguments[arg] for arg in args if arg in arguments]))

    with instrumented(engine.runner, instrument):
        call()
    runs = sum(any(p.group == "embedding" for p in parameters) for _, parameters in recorded)
    rows = Rows(tokens / runs, sequences)
    calls: list[KernelCall] = []
    for name, parameters in recorded:
        calls.append(KernelCall.of(name, parameters, calls[-1] if calls else None, rows))
    return calls


@contextmanager
def instrumented(runner: Runner, instrument: Callable) -> Iterator[None]:
    """Have ``instrument`` called before and after every function that the runner's machine calls; no CUDA graph is used."""
    set_instrument, used_graphs = runner.vm["set_instrument"], runner.uses_graphs
    set_instrument(instrument)
    runner.uses_graphs = False
    try:
        yield
    finally:
        set_instrument(None)
        runner.uses_graphs = used_graphs


def _arguments(engine: Engine) -> dict[Any, Argument]:
    """By the tensors that the kernels take."""
    artifact = engine.artifact
    parameter_of = {name: p for p in artifact.model_parameters for name in artifact.scheme.stored(p)}
    arguments = {}
    for spec, tensor in zip(engine.runner.metadata.params, engine.runner.params):
        parameter = parameter_of[spec.name]
        is_matrix = parameter.role in MULTIPLIED and not spec.name.endswith("scale")
        arguments[tensor] = Argument(
            group=parameter.part,
            place=_place(parameter.name),
            nbytes=0 if parameter.role in ("embedding", "table") else prod(spec.shape) * np.dtype(spec.dtype).itemsize,
            elements=prod(parameter.shape) if is_matrix else 0,
        )
    return arguments


def _place(name: str) -> tuple[int, str] | None:
    """Layer and half block of a parameter."""
    match = re.match(r"model\.blocks\.(\d+)\.(\w+)", name)
    half_block = HALF_BLOCKS[match[2]] if match else None
    return (int(match[1]), half_block) if match and half_block else None

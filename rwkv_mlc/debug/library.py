"""Dumps of a compiled library, the one that users run, through the virtual machine's instrument."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ..artifact import Artifact
from ..bench.breakdown import instrumented
from ..engine.runner import Runner
from ..engine.state import State
from ..engine.tvm_runtime import to_numpy
from ..errors import UserError
from ..schema import DumpHeader, KernelValues
from .dump import Dump, record
from .recipe import Recipe


class Tracer:
    """Runs a library call by call, from the model's own state before the first token, and keeps what its kernels write.

    Where the kernels of ``decode`` are merged, single tokens go through ``batch_decode``, whose kernels are the same, and
    where it is a CUDA graph, through its kernels one by one; the logits are those of ``decode`` in any case, and ``notes``
    say where the two differ."""

    def __init__(self, runner: Runner):
        self.runner = runner
        metadata = runner.metadata
        if not metadata.values:
            raise UserError(
                "The library does not name its values: another version of rwkv_mlc built it; build it again."
            )
        self.target: str = metadata.target
        self.prefill_activations: str = metadata.prefill_activations
        self.records: dict[str, tuple[KernelValues, ...]] = metadata.values
        self.state = runner.state_from(state.before(1) for state in metadata.states)
        self.notes: list[str] = []

    def step(self, tokens: Sequence[int], single: bool) -> dict[str, np.ndarray]:
        if not single:
            return self._run("prefill", tokens)
        if self.separate == "decode" and not self.runner.uses_graphs:
            return self._run("decode", tokens)
        logits = self.runner.run("decode", [tokens], self.state.copy()).copy()
        found = self._run(self.separate, tokens)
        if not np.array_equal(logits, found["logits"], equal_nan=True):
            self.notes = ["decode, whose kernels run as one, gives other logits than the same kernels one by one."]
        return found | {"logits": logits}

    @property
    def separate(self) -> str:
        """The function that reads single tokens kernel by kernel."""
        return "decode" if self.records.get("decode") else "batch_decode"

    def kernels(self) -> dict[str, dict[str, str]]:
        """The kernel that writes each value, by function and name of the value."""
        return {
            function: {
                name: kernel for kernel, outputs in records for names in outputs.values() for name in _each(names)
            }
            for function, records in self.records.items()
        }

    def _run(self, function: str, tokens: Sequence[int]) -> dict[str, np.ndarray]:
        records = self.records[function]
        kernels = {kernel for kernel, _ in records}
        ran: list[str] = []
        found: dict[str, np.ndarray] = {}

        def instrument(_function, name, before, _result, *args):
            if before or name not in kernels:  # the machine's own functions, and those that compute shapes
                return
            kernel, outputs = records[len(ran)] if len(ran) < len(records) else (None, {})
            ran.append(name)
            for position, names in outputs.items() if name == kernel else ():
                found.update(_named(names, to_numpy(args[position])))

        with instrumented(self.runner, instrument):
            self.runner.run(function, [tokens], self.state)
        if ran != [kernel for kernel, _ in records]:
            raise UserError("The library's kernels are not those that its metadata lists; build it again.")
        return found | _states(self.runner, self.state)


def dump_library(artifact: Artifact, runner: Runner, recipe: Recipe) -> Dump:
    """What a library of the artifact computes. Raises UserError for one that does not name its values, and as
    ``Recipe.check``."""
    tracer = Tracer(runner)
    tensors = record(artifact.config, recipe, tracer.step)
    functions = {"prefill": "prefill", "decode": tracer.separate}
    kernels = tracer.kernels()
    computed = ((name, kernels[functions[name.partition("/")[0].partition(".")[0]]]) for name in tensors)
    header = DumpHeader(
        source="library",
        name=artifact.name,
        sha256=artifact.record.source_sha256,
        config=artifact.config,
        quantization=artifact.scheme.name,
        activations=activations(tracer, tensors),
        tokens=list(recipe.tokens),
        decoded=recipe.decoded,
        chunk=recipe.chunk,
        target=tracer.target,
        device=str(runner.device),
        family=runner.metadata.family,
        kernels={name: by[value] for name, by in computed if (value := name.partition("/")[2]) in by},
        notes=tracer.notes,
    )
    return Dump(header, tensors)


def activations(tracer: Tracer, tensors: Mapping[str, np.ndarray]) -> str:
    """``DumpHeader.activations`` of what a library gave."""
    narrow = any(array.dtype == np.float16 for array in tensors.values())
    return "float16" if narrow else tracer.prefill_activations


def _named(names: str | tuple[str, ...], array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Rows [T, C]: the first axis of an output is 1, or one plane for each of several names."""
    return zip(_each(names), array)


def _each(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _states(runner: Runner, state: State) -> Mapping[str, np.ndarray]:
    names = (name.rpartition(".") for name in runner.state_names())
    return {f"{block}.state.{role}": array[0] for (block, _, role), array in zip(names, state.arrays())}

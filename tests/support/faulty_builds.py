"""Libraries with a deliberate bug, compared with the reference without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rwkv_mlc.debug.compare import Comparison, compare
from rwkv_mlc.debug.dump import Dump, record
from rwkv_mlc.debug.library import Tracer, activations
from rwkv_mlc.debug.recipe import Recipe
from rwkv_mlc.debug.reference import dump_checkpoint
from rwkv_mlc.debug.weights import StoredWeights
from rwkv_mlc.engine.devices import open_device
from rwkv_mlc.engine.runner import Runner
from rwkv_mlc.models import resolve
from rwkv_mlc.quantization.schemes import get_scheme
from rwkv_mlc.schema import Family
from rwkv_mlc.weights.checkpoint import Checkpoint
from support.compiled import QUICK, compile_library, in_memory, resolve_quickly
from support.faults import Fault, injected
from support.synthetic import synthetic_checkpoint

COMPILED = {"llvm": QUICK, "vulkan": "vulkan"}
DEVICES = {"llvm": "cpu", "vulkan": "vulkan"}
SINGLE = {"llvm": "batch_decode", "vulkan": "decode"}
"""What decodes, each kernel by itself: those of ``decode`` on a CPU are merged."""
TOKENS = (7, 1, 50, 7, 33, 12, 90, 2, 64, 18)


class Unmerged(Tracer):
    """It dumps libraries that lack ``decode`` where its kernels are merged."""

    def step(self, tokens: Sequence[int], single: bool) -> dict[str, np.ndarray]:
        return self._run(SINGLE[self.target] if single else "prefill", tokens)


@dataclass(frozen=True)
class Build:
    """A library and the weights it was given, made by the code as it was at that moment."""

    runner: Runner
    weights: StoredWeights

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        scheme_name: str,
        target_name: str,
        folder: Path,
        decodes: bool = True,
        family: Family = "fused",
    ) -> Build:
        scheme, (config, parameters, tensors) = get_scheme(scheme_name), resolve(checkpoint)
        stored = {}
        for parameter in parameters:
            stored |= scheme.quantize(parameter, parameter.convert(tensors[parameter.source].read()))
        library = compile_library(
            config, scheme, resolve_quickly(COMPILED[target_name]), folder, functions_of(target_name, decodes), family
        )
        weights = StoredWeights(parameters, scheme, stored)
        return cls(Runner(library, stored, open_device(DEVICES[target_name])), weights)

    def against(self, checkpoint: Checkpoint, recipe: Recipe) -> Comparison:
        tracer = Unmerged(self.runner)
        trusted = dump_checkpoint(checkpoint, recipe, self.weights.scheme)
        tensors = record(self.runner.config, recipe, tracer.step)
        own = {"source": "library", "activations": activations(tracer, tensors), "kernels": {}}
        header = trusted.header.model_copy(update=own)
        return compare(Dump(header, tensors), trusted, weights=self.weights)


def checkpoint_of(generation: str, layers: int = 2) -> Checkpoint:
    """A few layers of two heads. Keys are small, as in trained models, so that the group norm's epsilon has a say."""
    tensors = synthetic_checkpoint(generation, hidden_size=64, layers=layers, head_size=32)
    for name, array in tensors.items():
        if name.endswith("att.key.weight"):
            array *= 0.3
    return in_memory(tensors)


def compared(fault: Fault, target: str, right: Path, scratch: Path, family: Family | None = None) -> Comparison:
    """A build with the fault against the reference without it. Its library is among the ``right`` ones where the fault is
    in how weights are made; otherwise it lies in ``scratch``. It is of the ``family``, where that is not the fault's own."""
    checkpoint, edit = checkpoint_of(fault.generation, fault.layers), fault.edits[target]
    with injected(edit):
        folder, decodes = (scratch, fault.decodes) if edit.compiled else (right, True)
        build = Build.of(checkpoint, fault.scheme, target, folder, decodes, family or fault.family)
    return build.against(checkpoint, Recipe(TOKENS, decodes=2 * fault.decodes, chunk=fault.chunk))


def functions_of(target: str, decodes: bool) -> tuple[str, ...]:
    """Libraries have what the dumps need."""
    return ("prefill", *([SINGLE[target]] if decodes else []))

"""Builds with one deliberate bug each: the comparison names it, and is silent about the right builds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from support.compiled import compile_library, in_memory
from support.faults import FAULTS, GENERATIONS, TARGETS, Fault, injected
from support.synthetic import synthetic_checkpoint
from support.vulkan_kernels import vulkan_device

from rwkv_mlc.compiler.targets import resolve_target
from rwkv_mlc.debug.compare import Comparison, compare
from rwkv_mlc.debug.dump import Dump, Recipe, record
from rwkv_mlc.debug.library import Tracer, activations
from rwkv_mlc.debug.reference import dump_checkpoint
from rwkv_mlc.debug.weights import StoredWeights, different_weights
from rwkv_mlc.engine import runner
from rwkv_mlc.engine.devices import open_device
from rwkv_mlc.engine.runner import Runner
from rwkv_mlc.graph import module as graph
from rwkv_mlc.models import resolve
from rwkv_mlc.quantization.schemes import get_scheme
from rwkv_mlc.weights.checkpoint import Checkpoint

SCHEMES = ("q0f32", "q4f16_1")
DEVICES = {"llvm": "cpu", "vulkan": "vulkan"}
SINGLE = {"llvm": "batch_decode", "vulkan": "decode"}
"""What decodes, each kernel by itself: those of ``decode`` on a CPU are merged."""
TOKENS = (7, 1, 50, 7, 33, 12, 90, 2, 64, 18)
ROUNDING = {"float32": 1e-5, "float16": 1e-3}
"""The relative error of right values in the first layer; it grows up to fourfold on the way to the logits."""


class Unmerged(Tracer):
    """Of libraries that lack ``decode`` where its kernels are merged."""

    def step(self, tokens: Sequence[int], single: bool) -> dict[str, np.ndarray]:
        return self._run(SINGLE[self.target] if single else "prefill", tokens)


@dataclass(frozen=True)
class Build:
    """A library and the weights it was given, made by the code as it was at that moment."""

    runner: Runner
    weights: StoredWeights

    @classmethod
    def of(cls, checkpoint: Checkpoint, scheme_name: str, target_name: str, folder: Path) -> Build:
        scheme, (config, parameters, tensors) = get_scheme(scheme_name), resolve(checkpoint)
        stored = {}
        for parameter in parameters:
            stored |= scheme.quantize(parameter, parameter.convert(tensors[parameter.source].read()))
        library = compile_library(config, scheme, resolve_target(target_name), folder)
        weights = StoredWeights(parameters, scheme, stored)
        return cls(Runner(library, stored, open_device(DEVICES[target_name])), weights)

    def against(self, checkpoint: Checkpoint, recipe: Recipe) -> Comparison:
        tracer = Unmerged(self.runner)
        trusted = dump_checkpoint(checkpoint, recipe, self.weights.scheme)
        tensors = record(self.runner.config, recipe, tracer.step)
        header = replace(trusted.header, source="library", activations=activations(tracer, tensors), kernels={})
        return compare(Dump(header, tensors), trusted, weights=self.weights)


def checkpoint_of(generation: str) -> Checkpoint:
    """Two layers of two heads. Keys are small, as in trained models, so that the group norm's epsilon has a say."""
    tensors = synthetic_checkpoint(generation, hidden_size=64, layers=2, head_size=32)
    for name, array in tensors.items():
        if name.endswith("att.key.weight"):
            array *= 0.3
    return in_memory(tensors)


def compared(fault: Fault, target: str, right: Path, scratch: Path) -> Comparison:
    """A build with the fault against the reference without it. Its library is among the ``right`` ones where the fault is
    in how weights are made; otherwise it lies in ``scratch``."""
    checkpoint, edit = checkpoint_of(fault.generation), fault.edits[target]
    with injected(edit), functions_of(target, fault.decodes or not edit.compiled):
        build = Build.of(checkpoint, fault.scheme, target, scratch if edit.compiled else right)
    return build.against(checkpoint, Recipe(TOKENS, decodes=2 * fault.decodes, chunk=fault.chunk))


@contextmanager
def functions_of(target: str, decodes: bool) -> Iterator[None]:
    """Libraries have what the dumps need."""
    names = ("prefill", *([SINGLE[target]] if decodes else []))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "PHASES", {name: graph.PHASES[name] for name in names})
        patch.setattr(runner, "FUNCTIONS", names)
        yield


@pytest.fixture(autouse=True)
def hashes(monkeypatch):
    """Checkpoints in memory have no file to hash."""
    monkeypatch.setattr(Checkpoint, "sha256", lambda self: self.name)


@pytest.fixture
def right(libraries):
    """The folder of the libraries without a fault."""
    folder = libraries / "right"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(params=TARGETS)
def target(request) -> str:
    if request.param == "vulkan":
        vulkan_device()
    return request.param


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("generation", GENERATIONS)
def test_right_builds_agree(generation, scheme, target, right):
    checkpoint = checkpoint_of(generation)
    with functions_of(target, decodes=True):
        build = Build.of(checkpoint, scheme, target, right)
    assert different_weights(build.weights, checkpoint) == []
    for recipe in (Recipe(TOKENS), Recipe(TOKENS, chunk=6), Recipe()):
        comparison = build.against(checkpoint, recipe)
        assert comparison.agrees, comparison.finding.sentences()
        narrow = target == "vulkan" and scheme == "q4f16_1"
        assert comparison.a.activations == ("float16" if narrow else "float32")
        errors = [row.difference.relative_rms for row in comparison.rows]
        print(f"largest relative error {max(errors):.1e}")
        assert max(errors) < 4 * ROUNDING[comparison.a.activations]


@pytest.mark.parametrize(
    "fault, target",
    [pytest.param(fault, target, id=f"{fault}-{target}") for fault in FAULTS for target in fault.edits],
    indirect=["target"],
)
def test_faults_are_found(fault: Fault, target, right, tmp_path):
    if fault.integer_dot and not resolve_target(target).integer_dot:
        pytest.skip("this CPU has no integer dot products")
    comparison = compared(fault, target, right, tmp_path)
    finding = comparison.finding
    assert finding is not None and not comparison.agrees
    text = "\n".join(finding.sentences())
    print(text)
    assert finding.row.name == fault.first, text
    assert fault.role in finding.suspects, text
    assert all(error < ROUNDING[comparison.a.activations] for error in finding.inputs.values()), text
    if fault.hint:
        assert any(fault.hint in hint for hint in finding.hints), text


def test_faults_leave_nothing_behind(right):
    """An edit ends with its context, whatever happens in it."""
    checkpoint = checkpoint_of("5.2")
    with pytest.raises(RuntimeError), injected(FAULTS[-1].edits["llvm"]):
        raise RuntimeError
    with functions_of("llvm", decodes=True):
        build = Build.of(checkpoint, "q0f32", "llvm", right)
    assert build.against(checkpoint, Recipe(TOKENS)).agrees


def test_there_are_at_least_twelve_on_every_target_and_all_are_in_the_documentation():
    """``python tools/make_fault_table.py`` writes the table."""
    for target in TARGETS:
        assert len({fault.name for fault in FAULTS if target in fault.edits}) >= 12
    text = (Path(__file__).parents[2] / "docs" / "debugging.md").read_text(encoding="utf-8")
    for fault in FAULTS:
        assert f"| {fault.name} | {fault.generation} | `{fault.first}` |" in text

"""Builds with one deliberate bug each: the comparison names it, and is silent about the right builds."""

from __future__ import annotations

from pathlib import Path

import pytest

from rwkv_mlc.compiler.targets import resolve_target
from rwkv_mlc.debug.recipe import Recipe
from rwkv_mlc.debug.weights import different_weights
from rwkv_mlc.graph.model import best_activations
from rwkv_mlc.quantization.schemes import get_scheme
from rwkv_mlc.weights.checkpoint import Checkpoint
from support.faults import FAULTS, GENERATIONS, TARGETS, Fault, injected
from support.faulty_builds import TOKENS, Build, checkpoint_of, compared
from support.vulkan_kernels import vulkan_device

SCHEMES = ("q0f32", "q4f16_1")
ROUNDING = {"float32": 1e-5, "int21": 1e-5, "float16": 1e-3}
"""The relative error of right values in the first layer; it grows up to fourfold on the way to the logits."""


@pytest.fixture(autouse=True)
def hashes(monkeypatch):
    """Checkpoints in memory have no file to hash."""
    monkeypatch.setattr(Checkpoint, "sha256", lambda self: self.name)


@pytest.fixture(params=TARGETS)
def target(request) -> str:
    if request.param == "vulkan":
        vulkan_device()
    return request.param


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("generation", GENERATIONS)
def test_right_builds_agree(generation, scheme, target, libraries):
    checkpoint = checkpoint_of(generation)
    build = Build.of(checkpoint, scheme, target, libraries)
    assert different_weights(build.weights, checkpoint) == []
    for recipe in (Recipe(TOKENS), Recipe(TOKENS, chunk=6), Recipe()):
        comparison = build.against(checkpoint, recipe)
        assert comparison.agrees, comparison.finding.sentences()
        narrow = target == "vulkan" and scheme == "q4f16_1"
        best = best_activations(get_scheme(scheme), resolve_target(target))
        assert comparison.a.activations == ("float16" if narrow else best)
        errors = [row.difference.relative_rms for row in comparison.rows]
        print(f"largest relative error {max(errors):.1e}")
        assert max(errors) < 4 * ROUNDING[comparison.a.activations]


@pytest.mark.parametrize(
    "fault, target",
    [pytest.param(fault, target, id=f"{fault}-{target}") for fault in FAULTS for target in fault.edits],
    indirect=["target"],
)
def test_faults_are_found(fault: Fault, target, libraries, tmp_path):
    if fault.integer_dot and not resolve_target(target).integer_dot:
        pytest.skip("this CPU has no integer dot products")
    comparison = compared(fault, target, libraries, tmp_path)
    finding = comparison.finding
    assert finding is not None and not comparison.agrees
    text = "\n".join(finding.sentences())
    print(text)
    assert finding.row.name == fault.first, text
    assert fault.role in finding.suspects, text
    assert all(error < ROUNDING[comparison.a.activations] for error in finding.inputs.values()), text
    if fault.hint:
        assert any(fault.hint in hint for hint in finding.hints), text


@pytest.mark.parametrize("fault", [pytest.param(f, id=str(f)) for f in FAULTS if f.family == "plain"])
def test_plain_libraries_show_what_fused_kernels_keep(fault: Fault, libraries, tmp_path):
    """What lies between two values of the one library is the very value of the other."""
    plain = compared(fault, "llvm", libraries, tmp_path).finding
    assert f"prefill/{fault.role}" == plain.row.name and plain.between == []
    fused = compared(fault, "llvm", libraries, tmp_path, "fused").finding
    assert fused.row.name != plain.row.name and fault.role in fused.between


def test_faults_leave_nothing_behind(libraries):
    """An edit ends with its context, whatever happens in it."""
    checkpoint = checkpoint_of("5.2")
    with pytest.raises(RuntimeError), injected(FAULTS[-1].edits["llvm"]):
        raise RuntimeError
    build = Build.of(checkpoint, "q0f32", "llvm", libraries)
    assert build.against(checkpoint, Recipe(TOKENS)).agrees


def test_there_are_at_least_twelve_on_every_target_and_all_are_in_the_documentation():
    """``python tools/make_fault_table.py`` writes the table."""
    for target in TARGETS:
        assert len({fault.name for fault in FAULTS if target in fault.edits}) >= 12
    text = (Path(__file__).parents[2] / "docs" / "debugging.md").read_text(encoding="utf-8")
    for fault in FAULTS:
        assert f"| {fault.name} | {fault.generation} | `{fault.first}` |" in text

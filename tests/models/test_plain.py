"""The plain family: what its graph says before and after each pass."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tvm
from tvm import relax, te, tirx

from rwkv_mlc.artifact import Artifact
from rwkv_mlc.building import BuildOptions, build
from rwkv_mlc.cli.main import main
from rwkv_mlc.compiler.passes.schedule import check_threads, schedule
from rwkv_mlc.compiler.passes.stored import dequantize
from rwkv_mlc.compiler.pipeline import compile_module
from rwkv_mlc.compiler.targets import TARGETS, resolve_target
from rwkv_mlc.engine.engine import Engine
from rwkv_mlc.errors import UserError
from rwkv_mlc.graph.marks import VALUES
from rwkv_mlc.graph.ops import FAMILIES
from rwkv_mlc.interfaces.module import build_module
from rwkv_mlc.models import GENERATIONS, generation_of, resolve
from rwkv_mlc.models.values import place
from rwkv_mlc.quantization.group import GroupForm
from rwkv_mlc.quantization.schemes import SCHEMES
from support.compiled import in_memory, only
from support.paths import DEMO
from support.plain import PLAIN
from support.synthetic import synthetic_checkpoint

FORMS = {(scheme.name, scheme.matrix) for scheme in SCHEMES.values() if isinstance(scheme.matrix, GroupForm)}


def test_every_generation_scheme_and_target_is_built():
    assert PLAIN.keys() == TARGETS.keys()
    pairs = [pair for pairs in PLAIN.values() for pair in pairs]
    assert {generation for generation, _ in pairs} == GENERATIONS.keys()
    assert {scheme for _, scheme in pairs} == SCHEMES.keys()


def test_every_family_is_for_every_device():
    assert {devices.keys() == FAMILIES["fused"].keys() for devices in FAMILIES.values()} == {True}


@pytest.mark.parametrize("name, form", sorted(FORMS, key=lambda form: form[0]))
def test_dequantized_as_on_disk(name, form):
    """Bit for bit, a ragged last group included."""
    shape = (5, 100)
    stored = form.quantize(np.random.default_rng(0).normal(size=shape).astype(np.float32))
    inputs = [te.placeholder(array.shape, str(array.dtype)) for array in stored]
    kernel = tvm.compile(te.create_prim_func([*inputs, dequantize(shape, form, *inputs)]), "llvm")
    found = tvm.runtime.tensor(np.zeros(shape, np.float32))
    kernel(*(tvm.runtime.tensor(array) for array in stored), found)
    assert np.array_equal(found.numpy(), form.dequantize(*stored, shape))


def decode(script: str) -> str:
    """The function ``decode`` of a module in TVMScript."""
    return re.search(r"def decode\(.*?(?=\n    @|\Z)", script, re.DOTALL)[0]


def test_passes_are_in_the_dump(tmp_path):
    """Products read float32 matrices, then what is stored of them, then inputs of float16; the kernels come last."""
    config, parameters, _ = resolve(in_memory(synthetic_checkpoint("5.2", layers=1)))
    target = resolve_target("vulkan")
    with only(["decode"]):
        module = build_module(config, SCHEMES["q4f16_1"], target, family="plain")
    compile_module(module, target, tmp_path)
    graph, stored, narrow, fused = (
        decode((tmp_path / f"{phase}.py").read_text(encoding="utf-8"))
        for phase in ("0-graph", "1-stored", "1-narrow", "1-fuse")
    )
    matrices = [p for p in parameters if p.role != "vector"]
    products = [p for p in matrices if p.role != "embedding"]
    assert graph.count("R.matmul(") == len(products) and "dequantize" not in graph and '"uint32"' not in graph
    assert stored.count("R.matmul(") == len(products) and stored.count("cls.dequantize") == len(matrices)
    assert len(re.findall(r"R.call_pure_packed.*uint32", stored)) == len(matrices)
    assert '"float16"' not in re.sub(r".*(call_pure_packed|dequantize|func_attr).*", "", stored)
    rounded = 4 + 1 + 2 + 1 + 1  # mixed inputs of both half blocks, the gated wkv, the squares, what the head reads
    assert narrow.count("R.astype(") == 2 * rounded and narrow.count("R.matmul(") == len(products)
    assert "R.matmul(" not in fused and fused.count("call_tir(cls.fused_") >= len(products)


def test_no_part_of_a_kernel_is_left_to_the_host():
    """Where it would compute with the addresses of a GPU."""
    target, builder = resolve_target("vulkan"), relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType([tirx.Var("n", "int64"), 64], "float32"))
    with builder.function("add", [x]):
        builder.emit_func_output(builder.emit(relax.op.add(x, x)))
    unscheduled = relax.transform.LegalizeOps()(builder.get())
    with pytest.raises(ValueError, match="add1: a part of the kernel belongs to no thread"):
        check_threads(unscheduled)
    with target.tvm:
        schedule(target)(unscheduled)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_value_has_a_name(generation):
    """But for what a gate is applied to in the same breath."""
    inside = {"4": {"att.wkv"}, "7a": {"ffn.scale"}}.get(generation, set())
    config, _, _ = resolve(in_memory(synthetic_checkpoint(generation, layers=2)))
    with only(["decode"]):
        module = build_module(config, SCHEMES["q0f32"], resolve_target("vulkan"), family="plain")
    named = [str(name) for name in module["decode"].attrs[VALUES] if name]
    values = [name for name in generation_of(config).values(config) if place(name)[1] not in inside]
    assert named == [name for name in values if ".state." not in name]


def test_build_says_which_family(tmp_path, capfd):
    built = build(DEMO, "llvm", "q4f16_1", tmp_path, BuildOptions(family="plain"))
    assert capfd.readouterr() == ("", ""), "TVM's own lines are nothing to a user"
    engine = Engine(built.path)
    assert engine.runner.metadata.family == "plain" == Artifact.open(built.path).record.libraries["llvm"].family
    assert main(["inspect", str(built.path)]) == 0 and re.search("family *plain", capfd.readouterr().out)
    named = {name for _, outputs in engine.runner.metadata.values["decode"] for name in outputs.values()}
    values = {name for name in generation_of(engine.config).values(engine.config) if ".state." not in name}
    assert named == values, "a plain library keeps no value to itself"
    assert engine.generate("Once upon a time", max_tokens=8, temperature=0).text


def test_a_family_that_there_is_not():
    with pytest.raises(UserError, match="fused, plain, not 'other'"):
        BuildOptions(family="other")


def test_integers_are_for_the_fused_family():
    with pytest.raises(UserError, match="needs --family fused"):
        build(DEMO, "llvm -mcpu=icelake-server", options=BuildOptions(family="plain", prefill_activations="int8"))

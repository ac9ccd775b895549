"""Decoding one token runs merged kernels: they must do exactly what the separate ones of ``batch_decode`` do."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import tvm
from tvm import relax

from rwkv_mlc.compiler.passes.merge import merge_kernels
from rwkv_mlc.compiler.targets import resolve_target
from rwkv_mlc.config import RWKVConfig
from rwkv_mlc.interfaces.module import build_module
from rwkv_mlc.models import GENERATIONS, resolve
from rwkv_mlc.quantization.schemes import get_scheme
from rwkv_mlc.weights.checkpoint import Checkpoint
from support.compiled import Model, in_memory
from support.synthetic import synthetic_checkpoint

LAYERS = 3
SHAPES = {
    "4": dict(hidden_size=128),
    "5.0": dict(hidden_size=256),
    "5.2": dict(hidden_size=128, head_size=32),
    "5.1": dict(hidden_size=72, head_size=24, intermediate_size=104),
    "6": dict(hidden_size=128, head_size=32),
    "7": dict(hidden_size=128, head_size=32),
    "7a": dict(hidden_size=72, head_size=24, intermediate_size=104),
}
SCHEMES = ("q0f16", "q4f16_1", "q3f16_1")
BARRIER = "pragma_parallel_barrier_when_finish"


def checkpoint(generation: str) -> Checkpoint:
    return in_memory(synthetic_checkpoint(generation, layers=LAYERS, **SHAPES[generation]))


@pytest.mark.parametrize(
    "generation, scheme", [*product((g for g in GENERATIONS if g != "7a"), SCHEMES), ("7a", "q4f16_1")]
)
def test_merged_kernels_equal_separate_ones(generation, scheme, artifacts):
    """Bit for bit, in logits and state: threads that missed a barrier would differ sooner or later."""
    model = Model.of(checkpoint(generation), scheme, artifacts, functions=["decode", "batch_decode"])
    states = {name: model.runner.new_state() for name in ("decode", "batch_decode")}
    for token in np.random.default_rng(0).integers(0, model.config.vocab_size, 200):
        logits = [model.runner.run(name, [[token]], state) for name, state in states.items()]
        assert np.array_equal(*logits)
    for decoded, expected in zip(*(state.arrays() for state in states.values())):
        assert np.array_equal(decoded, expected)


def merged(generation: str, scheme: str) -> tvm.IRModule:
    return merge_kernels(build_module(resolve(checkpoint(generation))[0], get_scheme(scheme), resolve_target("llvm")))


def calls(function: relax.Function) -> list[str]:
    values = [binding.value for block in function.body.blocks for binding in block.bindings]
    kernels = [v.args[0].name_hint for v in values if isinstance(v, tvm.ir.Call) and "call_tir" in v.op.name]
    return [name.rstrip("0123456789") for name in kernels]


@pytest.mark.parametrize("generation", GENERATIONS)
def test_two_calls_a_layer(generation):
    module = merged(generation, "q4f16_1")
    assert calls(module["decode"]) == ["embedding", "layer_norm", *["time_mixing", "channel_mixing"] * LAYERS, "head"]
    kernels = {name.name_hint for name in module.get_global_vars() if "mixing" in name.name_hint}
    first = {"time_mixing1"} if generation in ("7", "7a") else set()  # whose first layer gives the others its values
    assert kernels == {"time_mixing", "channel_mixing"} | first, "layers share their kernels"


def barriers(module: tvm.IRModule, name: str) -> int:
    return module[name].script().count(BARRIER)


@pytest.mark.parametrize("generation", ["4", "5.0", "5.2"])
def test_threads_wait_where_they_read_what_others_wrote(generation):
    """Time mixing: the quantized inputs of the projections, and those of the output matrix. Heads and blocks of channels
    stay on their thread through wkv and group norm."""
    module = merged(generation, "q4f16_1")
    assert barriers(module, "time_mixing") == 2


def test_parts_that_do_not_fit_have_barriers():
    """Heads of 24 channels are no whole groups of 32 and no whole blocks of 16 rows."""
    assert barriers(merged("5.1", "q4f16_1"), "time_mixing") == 5


def test_without_static_shapes_nothing_is_merged():
    config = RWKVConfig("5.2", 97, 128, 2, 448, 64)
    module = build_module(config, get_scheme("q4f16_1"), resolve_target("llvm"))
    for name in ("batch_decode", "prefill", "score"):
        assert calls(merge_kernels(module)[name]) == calls(module[name])

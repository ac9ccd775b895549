"""x86-64 from its first to its latest instructions, each level as far as this machine can run it."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm.script.ir_builder import tirx as T

from rwkv_mlc.compiler.passes.float16 import widen_by_integers
from rwkv_mlc.compiler.targets import resolve_target
from rwkv_mlc.machine.cpu_features import host_architecture, host_features
from support.accuracy import BOUND, TOKENS, trained_like_weights
from support.kernel_build import call, error
from tir_kernels.builder import arg, cast, prim_func, span

pytestmark = pytest.mark.skipif(host_architecture() != "x86_64", reason="other CPUs run no code for x86-64")

EVEN = {"layers": 2}
ODD = {"layers": 2, "hidden_size": 40, "head_size": 8, "intermediate_size": 90}  # no multiples of 16 or of a group
MODELS = [
    ("x86-64", "4", "q0f16", ODD),
    ("x86-64", "5.2", "q4f16_1", EVEN),
    ("x86-64-v2", "5.2", "q8f16_1", ODD),
    ("x86-64-v3", "5.2", "q4f16_1", EVEN),
    ("x86-64-v3", "5.1", "q3f16_1", ODD),
    ("x86-64-v3", "4", "q8f16_1", ODD),
    ("alderlake", "5.2", "q4f16_1", EVEN),
    ("alderlake", "4", "q8f16_1", ODD),
    ("skylake-avx512", "5.2", "q4f16_1", ODD),
    ("skylake-avx512", "4", "q8f16_1", EVEN),
]


@pytest.mark.parametrize("mcpu, generation, scheme, shape", MODELS)
def test_logits(mcpu, generation, scheme, shape, compiled, within):
    lacking = set(resolve_target("llvm", mcpu).features) - (host_features() or set())
    if lacking:
        pytest.skip(f"this CPU lacks {', '.join(sorted(lacking))}")
    model = compiled(
        trained_like_weights(generation, **shape), scheme, f"llvm -mcpu={mcpu}", functions=["score", "decode"]
    )
    tokens = TOKENS[:60]
    expected = model.reference(tokens)
    within("score", error(model.score(tokens), expected), BOUND)
    within("decode", error(model.decode(tokens), expected), BOUND)


def convert(width: int):
    @prim_func
    def kernel():
        count = T.int64()
        x, out = arg("x", (count, width), "float16"), arg("out", (count, width))
        with T.serial(0, count) as i:
            at = span(0, width)
            T.buffer_store(out, cast(x[i, at], "float32", width), [i, at])

    return kernel


@pytest.mark.parametrize("width", [1, 16])
def test_float16_without_instructions_for_it(width):
    """Every finite number, bit for bit, and no call of a function for each."""
    kernel = convert(width).with_attr("global_symbol", "convert")
    built = tvm.compile(widen_by_integers(tvm.IRModule({"convert": kernel})), target={"kind": "llvm", "mcpu": "x86-64"})
    assert "__extendhfsf2@PLT" not in built.mod.inspect_source("asm")
    numbers = np.arange(2**16, dtype=np.uint16).view(np.float16)
    numbers = numbers[np.isfinite(numbers)].reshape(-1, width)
    (out,) = call(built["convert"], numbers, np.full(numbers.shape, np.nan, np.float32), written=[-1])
    assert out.tobytes() == numbers.astype(np.float32).tobytes()

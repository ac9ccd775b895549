"""The same model behind two interfaces: slots of a pool that change in place, and states that come back from every call."""

from __future__ import annotations

import numpy as np
import pytest

from rwkv_mlc.compiler.link import export_library
from rwkv_mlc.compiler.pipeline import compile_module
from rwkv_mlc.compiler.targets import resolve_target
from rwkv_mlc.engine.tvm_runtime import tvm_ffi, virtual_machine
from rwkv_mlc.interfaces import INTERFACES
from rwkv_mlc.interfaces.module import build_module
from rwkv_mlc.quantization.schemes import get_scheme
from support import functional
from support.accuracy import trained_like_weights
from support.compiled import QUICK, runner_for

SHAPE = {"vocab_size": 61, "hidden_size": 64, "layers": 2, "head_size": 32}
SEQUENCES = [[5, 9, 17, 60, 2, 33, 8, 41, 7], [3], [11, 12, 13, 14, 15]]
CASES = [("7a", QUICK), ("4", "vulkan")]
"""``test_mlc_engine`` has the other generations in such an interface, which 7a has no other of; here states are compared."""


@pytest.mark.parametrize("generation, target", CASES)
def test_both_compute_the_same(generation, target, compiled, monkeypatch, tmp_path):
    """Bit for bit: ragged prompts, single tokens of several sequences, and a single sequence."""
    monkeypatch.setitem(INTERFACES, "functional", functional.Functional())
    weights = trained_like_weights(generation, **SHAPE)
    native = compiled(weights, "q0f32", target, runner_for(target), functions=["prefill", "batch_decode"])
    resolved = resolve_target(target)
    module = build_module(native.config, get_scheme("q0f32"), resolved, interfaces=("functional",))
    export_library(compile_module(module, resolved), resolved, tmp_path / "functional.so")
    machine = virtual_machine(tvm_ffi.load_module(tmp_path / "functional.so"), native.runner.device)
    params = list(native.runner.params)

    def both(function: str, name: str, sequences: list[list[int]]) -> None:
        nonlocal states
        expected = native.runner.run(function, sequences, pool)
        logits, states = functional.call(machine, name, sequences, states, params, native.runner.device)
        assert np.array_equal(logits, expected), name
        for which, ours, array in zip(native.runner.state_names(), states, pool.arrays(), strict=True):
            assert np.array_equal(ours, array), which

    pool = native.runner.new_state(3)
    states = pool.arrays()
    both("prefill", "read", SEQUENCES)
    for token in (1, 44):
        both("batch_decode", "step", [[token], [token + 1], [60 - token]])
    both("prefill", "read", [[4, 4], [50, 51, 52], [9]])

    pool = native.runner.new_state()
    states = pool.arrays()
    both("prefill", "read", [SEQUENCES[0]])
    both("batch_decode", "step", [[7]])

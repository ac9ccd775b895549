"""A script in the place of mlc_llm's engine: it loads a library as that does and calls its functions around TVM's RNNState.

What it asserts is what that engine needs and does not say: it ends in the middle of a request, or goes on with wrong text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rwkv_mlc.engine.runner import Runner, State
from rwkv_mlc.engine.tvm_runtime import Device, tensor, to_numpy, tvm_ffi, virtual_machine
from support.kernel_build import error

MANDATORY = {
    "model_type": str,
    "quantization": str,
    "context_window_size": int,
    "prefill_chunk_size": int,
    "max_batch_size": int,
    "tensor_parallel_shards": int,
    "memory_usage": dict,
    "kv_state_kind": str,
    "params": list,
}
"""What its parser of ``_metadata`` needs (cpp/metadata/model.cc)."""

ARGUMENTS = {
    "_metadata": 0,
    "embed": 2,
    "prefill": 3,
    "decode": 3,
    "batch_prefill": 4,
    "batch_decode": 3,
    "batch_verify": 3,
    "create_rnn_state": 2,
    "alloc_embedding_tensor": 0,
    "softmax_with_temperature": 2,
    "apply_logit_bias_inplace": 4,
    "apply_penalty_inplace": 6,
    "apply_bitmask_inplace": 3,
}
"""The functions that it calls (cpp/serve/function_table.cc), and how many arguments it gives them."""

OF_GPU = {"argsort_probs": 1, "multinomial_from_uniform": 3, "sample_with_top_p": 5, "sampler_take_probs": 5}
"""Those of its sampler for GPUs (cpp/serve/sampler/gpu_sampler.cc)."""


class Script:
    """``arrays`` are the stored tensors by name; ``sequences`` and ``history`` are how many states there is room for.
    ``instead`` has functions that take the place of the library's, made from what it has; ``without`` are functions that it
    is to lack."""

    def __init__(
        self,
        library: Path,
        arrays: Mapping[str, np.ndarray],
        device: Device,
        sequences: int = 4,
        history: int = 3,
        instead: Mapping[str, Callable] = {},
        without: Collection[str] = (),
    ):
        self.device = device
        self.vm = virtual_machine(tvm_ffi.load_module(str(library)), device)
        self.instead = instead
        self.metadata: dict[str, Any] = json.loads(self.function("_metadata")())
        for key, kind in MANDATORY.items():
            assert key in self.metadata, f"{key} is missing"
            assert isinstance(self.metadata[key], kind), f"{key} is no {kind.__name__}"
        assert "rwkv" in self.metadata["model_type"], "no model type that keeps states"
        assert self.metadata["kv_state_kind"] == "rnn_state", "another kind of state"
        names = [spec["name"] for spec in self.metadata["params"]]
        assert sorted(names) == sorted(arrays), "names of parameters"
        for spec in self.metadata["params"]:
            array = arrays[spec["name"]]
            assert (list(array.shape), str(array.dtype)) == (spec["shape"], spec["dtype"]), f"type of {spec['name']}"
            assert spec["preprocs"] == [], "a parameter that is worked on"
        for name, count in (ARGUMENTS | (OF_GPU if device.type != "cpu" else {})).items():
            assert self.vm.implements_function(name) and name not in without, f"{name} is missing"
            assert self.vm["get_function_arity"](name) == count, f"arguments of {name}"
        self.params = self.packed(arrays, names)
        self.state = self.function("create_rnn_state")(tvm_ffi.Shape((sequences,)), tvm_ffi.Shape((history,)))

    def packed(self, arrays: Mapping[str, np.ndarray], names: Sequence[str]):
        """The one object that functions take parameters in, in the metadata's order."""
        return tvm_ffi.convert([self.tensor(arrays[name]) for name in names])

    def function(self, name: str) -> Callable:
        return self.instead[name](self.vm[name]) if name in self.instead else self.vm[name]

    def tensor(self, array: np.ndarray):
        return tensor(np.ascontiguousarray(array), self.device)

    def keep(self, what: str, *args: object) -> None:
        """``add_sequence``, ``remove_sequence``, ``fork_sequence`` or ``popn`` of the state."""
        tvm_ffi.get_global_func(f"vm.builtin.kv_state_{what}")(self.state, *args)

    def call(self, function: str, fed: Mapping[int, Sequence[int]]) -> np.ndarray:
        """Logits [rows, V] after feeding tokens to sequences, by the numbers of these."""
        lengths, tokens = [len(part) for part in fed.values()], np.concatenate(list(fed.values()))
        rows = to_numpy(self.function("embed")(self.tensor(tokens.astype(np.int32)), self.params))
        assert rows.dtype == np.float32 and rows.ndim == 2 and len(rows) == len(tokens), "rows of the embedding"
        leading = (len(tokens), 1) if function == "batch_decode" else (1, len(tokens))
        positions = [self.tensor((np.cumsum(lengths) - 1).astype(np.int32))] if function == "batch_prefill" else []
        self.keep("begin_forward", tvm_ffi.Shape(tuple(fed)), tvm_ffi.Shape(tuple(lengths)))
        given = self.tensor(rows.reshape(*leading, -1))
        logits, _ = self.function(function)(given, *positions, self.state, self.params)
        self.keep("end_forward")
        found = to_numpy(logits)
        count = {"batch_verify": len(tokens), "batch_prefill": len(fed), "batch_decode": len(fed)}.get(function, 1)
        assert found.dtype == np.float32, "type of the logits"
        assert found.shape[:2] == ((count, 1) if function == "batch_decode" else (1, count)), "shape of the logits"
        return found.reshape(count, -1)

    def run(self, name: str, *arrays: np.ndarray) -> list[np.ndarray]:
        """What another function makes of arrays: its results, or where it changes the first, that."""
        given = [self.tensor(array) for array in arrays]
        result = self.function(name)(*given)
        if name.endswith("_inplace"):
            return [to_numpy(given[0])]
        return [to_numpy(result)] if isinstance(result, tvm_ffi.Tensor) else [to_numpy(one) for one in result]


class Own:
    """The same sequences in our own functions, each in a state of its own, with what it was before every call."""

    def __init__(self, runner: Runner):
        self.runner = runner
        self.before: dict[int, list[State]] = {}

    def add(self, sequence: int) -> None:
        self.before[sequence] = [self.runner.new_state()]

    def fork(self, sequence: int, other: int) -> None:
        self.before[other] = [state.copy() for state in self.before[sequence]]

    def back(self, sequence: int, calls: int) -> None:
        del self.before[sequence][-calls:]

    def read(self, sequence: int, tokens: Sequence[int]) -> np.ndarray:
        """Logits [T, V]."""
        state = self.before[sequence][-1].copy()
        self.before[sequence].append(state)
        if len(tokens) == 1:
            return self.runner.run("decode", [tokens], state)
        return self.runner.run("score", [tokens], state)


LONG, SHORT = [5, 9, 17, 60, 2, 33, 8], [11, 12, 3]


def session(script: Script, runner: Runner) -> float:
    """The largest error of a session beside our own functions: prompts of other lengths together and alone, the rest of one in
    another call, single tokens beside prompts, batches, all logits of one, forks, steps back, a number that is taken again."""
    own, errors = Own(runner), []

    def add(sequence: int) -> None:
        script.keep("add_sequence", sequence)
        own.add(sequence)

    def both(function: str, fed: dict[int, list[int]]) -> np.ndarray:
        found, expected = script.call(function, fed), [own.read(*each) for each in fed.items()]
        kept = expected if function == "batch_verify" else [logits[-1:] for logits in expected]
        errors.append(error(found, np.concatenate(kept)))
        return found

    for sequence in (10, 11, 12):
        add(sequence)
    both("batch_prefill", {10: LONG, 11: SHORT})
    both("prefill", {12: LONG[:4]})
    both("prefill", {12: LONG[4:]})
    both("batch_decode", {12: [1], 10: [2], 11: [3]})
    both("decode", {11: [7]})
    both("batch_prefill", {10: [4], 11: LONG, 12: [50]})
    both("batch_verify", {12: SHORT})
    script.keep("fork_sequence", 12, 13, -1)
    own.fork(12, 13)
    first = both("decode", {12: [9]})
    assert np.array_equal(both("decode", {13: [9]}), first), "a fork"
    both("batch_decode", {13: [2], 12: [4]})
    script.keep("popn", 12, 2)
    own.back(12, 2)
    assert np.array_equal(both("decode", {12: [9]}), first), "two steps back"
    script.keep("popn", 13, 1)
    own.back(13, 1)
    both("batch_decode", {12: [3], 13: [3]})
    for sequence in (10, 13):
        script.keep("remove_sequence", sequence)
    add(10)
    both("batch_prefill", {10: SHORT, 12: [1]})
    token = int(both("decode", {10: [5]}).argmax())
    for _ in range(5):  # as its sampler on the CPU goes on, at temperature 0
        logits = both("decode", {10: [token]})
        (probs,) = script.run("softmax_with_temperature", logits[:, None], np.zeros(1, np.float32))
        token = int(logits.argmax())
        assert probs[0, 0, token] == 1, "all of the likeliest token"
    return float(np.max(errors))  # NaN, where one is

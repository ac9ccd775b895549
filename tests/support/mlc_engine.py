"""A script in the place of mlc_llm's engine: it loads a library as that does and calls its functions around TVM's RNNState."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rwkv_mlc.engine.tvm_runtime import Device, tensor, to_numpy, tvm_ffi, virtual_machine

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


class Script:
    """``arrays`` are the stored tensors by name; ``sequences`` and ``history`` are how many the states have room for."""

    def __init__(
        self, library: Path, arrays: Mapping[str, np.ndarray], device: Device, sequences: int = 4, history: int = 3
    ):
        self.device = device
        self.vm = virtual_machine(tvm_ffi.load_module(str(library)), device)
        self.metadata: dict[str, Any] = json.loads(self.vm["_metadata"]())
        for key, kind in MANDATORY.items():
            assert isinstance(self.metadata[key], kind), key
        assert "rwkv" in self.metadata["model_type"] and self.metadata["kv_state_kind"] == "rnn_state"
        for spec in self.metadata["params"]:
            array = arrays[spec["name"]]
            assert (list(array.shape), str(array.dtype), []) == (spec["shape"], spec["dtype"], spec["preprocs"])
        names = [spec["name"] for spec in self.metadata["params"]]
        assert sorted(names) == sorted(arrays)
        self.params = tvm_ffi.convert([self.tensor(arrays[name]) for name in names])
        self.state = self.vm["create_rnn_state"](tvm_ffi.Shape((sequences,)), tvm_ffi.Shape((history,)))

    def tensor(self, array: np.ndarray):
        return tensor(np.ascontiguousarray(array), self.device)

    def keep(self, what: str, *args: object) -> None:
        """``add_sequence``, ``remove_sequence``, ``fork_sequence`` or ``popn`` of the state."""
        tvm_ffi.get_global_func(f"vm.builtin.kv_state_{what}")(self.state, *args)

    def call(self, function: str, fed: Mapping[int, Sequence[int]]) -> np.ndarray:
        """Logits [rows, V] after feeding tokens to sequences, by the numbers of these."""
        lengths, tokens = [len(part) for part in fed.values()], np.concatenate(list(fed.values()))
        rows = to_numpy(self.vm["embed"](self.tensor(tokens.astype(np.int32)), self.params))
        assert rows.shape == (len(tokens), rows.shape[1]) and rows.dtype == np.float32
        leading = (len(tokens), 1) if function == "batch_decode" else (1, len(tokens))
        positions = [self.tensor((np.cumsum(lengths) - 1).astype(np.int32))] if function == "batch_prefill" else []
        self.keep("begin_forward", tvm_ffi.Shape(tuple(fed)), tvm_ffi.Shape(tuple(lengths)))
        given = self.tensor(rows.reshape(*leading, -1))
        logits, _ = self.vm[function](given, *positions, self.state, self.params)
        self.keep("end_forward")
        found = to_numpy(logits)
        count = {"batch_verify": len(tokens), "batch_prefill": len(fed), "batch_decode": len(fed)}.get(function, 1)
        assert found.dtype == np.float32 and found.shape[:2] == (
            (count, 1) if function == "batch_decode" else (1, count)
        )
        return found.reshape(count, -1)

    def run(self, name: str, *arrays: np.ndarray) -> list[np.ndarray]:
        """What another function makes of arrays: its results, or where it changes the first, that."""
        given = [self.tensor(array) for array in arrays]
        result = self.vm[name](*given)
        if name.endswith("_inplace"):
            return [to_numpy(given[0])]
        return [to_numpy(result)] if isinstance(result, tvm_ffi.Tensor) else [to_numpy(one) for one in result]

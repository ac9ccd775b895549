"""Compiling kernels and calling them on NumPy arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tvm
from tvm.target.codegen import llvm_get_system_cpu
from tvm.tirx import PrimFunc

from rwkv_mlc.compiler.pipeline import lowering

HOST_TARGET = {"kind": "llvm", "mcpu": llvm_get_system_cpu()}


def build(functions: Mapping[str, PrimFunc], target=HOST_TARGET) -> tvm.runtime.Executable:
    """All functions in one module for a CPU, each under its name."""
    module = tvm.IRModule({name: function.with_attr("global_symbol", name) for name, function in functions.items()})
    with lowering():
        return tvm.compile(module, target=target)


def call(function, *arrays: np.ndarray, written: Sequence[int]) -> list[np.ndarray]:
    """The arrays at the positions ``written`` after the call; all others must come back bit for bit. A function that has a
    ``device`` runs there."""
    device = getattr(function, "device", None)
    tensors = [tvm.runtime.tensor(np.ascontiguousarray(array), device) for array in arrays]
    function(*tensors)
    written = [range(len(arrays))[i] for i in written]
    for i, (array, tensor) in enumerate(zip(arrays, tensors)):
        assert i in written or array.tobytes() == tensor.numpy().tobytes(), f"argument {i} changed"
    return [tensors[i].numpy() for i in written]


def error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest deviation relative to the largest expected magnitude."""
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / np.abs(expected).max())

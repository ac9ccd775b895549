"""TVM's runtime: compiled libraries and tensors, from its shared library alone.

Importing the ``tvm`` package would bring the compiler, half a second and 110 MB. A process may do so before or after.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

POOLED_ALLOCATOR = 2


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """``tvm_ffi`` imports PyTorch wherever it is installed: a second and 200 MB that no model needs."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None
    try:
        yield
    finally:
        del sys.modules["torch"]


with _without_torch():
    import tvm_ffi
    from tvm_ffi import Device, Module, Tensor
    from tvm_ffi.libinfo import load_lib_ctypes

_folder = Path(importlib.util.find_spec("tvm").origin).parent
load_lib_ctypes("tvm", "tvm_runtime", "RTLD_GLOBAL", extra_lib_paths=[_folder / "lib"])
_allocate = tvm_ffi.get_global_func("runtime.TVMTensorAllocWithScope")


def virtual_machine(library: Path, device: Device) -> Module:
    """The functions of a compiled library, by name, for calls with tensors on ``device``."""
    machine = tvm_ffi.load_module(library)["vm_load_executable"]()
    devices = dict.fromkeys([device, tvm_ffi.device("cpu")])  # shapes are computed on the CPU
    machine["vm_initialization"](*(n for d in devices for n in (d.dlpack_device_type(), d.index, POOLED_ALLOCATOR)))
    return machine


def empty(shape: Sequence[int], dtype: str, device: Device) -> Tensor:
    return _allocate(tvm_ffi.Shape(shape), tvm_ffi.dtype(dtype), device, None)


def tensor(array: np.ndarray, device: Device) -> Tensor:
    """A copy of ``array`` on ``device``."""
    target = empty(array.shape, array.dtype.name, device)
    np.copyto(np.from_dlpack(target), array)
    return target


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A copy of ``tensor``."""
    return np.from_dlpack(tensor).copy()

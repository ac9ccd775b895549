"""TVM's runtime: compiled libraries and tensors, from its shared library alone.

Importing the ``tvm`` package would bring the compiler, half a second and 110 MB. A process may do so before or after.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..escaping import shortened

POOLED_ALLOCATOR = 2
EXISTS = 0  # attribute of a device
ALIGNMENT = 64  # bytes: kAllocAlignment of TVM, on which kernels move vectors from the beginning of a tensor


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """``tvm_ffi`` imports PyTorch wherever it is installed: a second and 200 MB that no model needs."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]


with _without_torch():
    import tvm_ffi
    from tvm_ffi import Device, Module, Tensor, libinfo

tvm_folder = Path(importlib.util.find_spec("tvm").origin).parent  # type: ignore[union-attr, arg-type]
libinfo.load_lib_ctypes("tvm", "tvm_runtime", "RTLD_GLOBAL", extra_lib_paths=[tvm_folder / "lib"])
_allocate = tvm_ffi.get_global_func("runtime.TVMTensorAllocWithScope")
_copy_from_bytes = tvm_ffi.get_global_func("runtime.TVMTensorCopyFromBytes")
_copy_to_bytes = tvm_ffi.get_global_func("runtime.TVMTensorCopyToBytes")
_copy = tvm_ffi.get_global_func("runtime.TVMTensorCopyFromTo")
_create_view = tvm_ffi.get_global_func("runtime.TVMTensorCreateView")
_clear_pools = tvm_ffi.get_global_func("vm.builtin.memory_manager.clear")
_synchronize = tvm_ffi.get_global_func("runtime.Device_StreamSync")
CPU = tvm_ffi.device("cpu")


def has_runtime(kind: str) -> bool:
    """Whether TVM knows devices of this kind, such as ``cuda``, in this process."""
    return tvm_ffi.get_global_func(f"device_api.{kind}", allow_missing=True) is not None


def load_runtime(kind: str) -> None:
    """Load TVM's runtime for a kind of device, a library beside its own. Raises OSError or RuntimeError where there is
    none, or where it misses the libraries of the device's maker."""
    libinfo.load_lib_ctypes("tvm", f"tvm_runtime_{kind}", "RTLD_LOCAL", extra_lib_paths=[tvm_folder / "lib"])


def exists(device: Device) -> bool:
    return bool(tvm_ffi.get_global_func("runtime.GetDeviceAttr")(device.dlpack_device_type(), device.index, EXISTS))


def load_library(path: Path) -> Module:
    """A library in this process, in which its code runs from now on. Raises UserError where the system does not load it, and
    for one that holds no executable of TVM's."""
    try:
        executable = tvm_ffi.load_module(path.absolute())  # a name without a folder would be looked for elsewhere
    except (OSError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} cannot be loaded ({shortened(reason, 300)}); build it again.") from None
    if not executable.implements_function("vm_load_executable"):
        raise UserError(f"{path} is no library that rwkv-mlc wrote; build it again.")
    return executable


def virtual_machine(executable: Module, device: Device) -> Module:
    """The functions of a compiled library, by name, for calls with tensors on ``device``."""
    machine = executable["vm_load_executable"]()
    devices = dict.fromkeys([device, CPU])  # shapes are computed on the CPU
    machine["vm_initialization"](*(n for d in devices for n in (d.dlpack_device_type(), d.index, POOLED_ALLOCATOR)))
    return machine


def free_pools() -> None:
    """Free the memory that virtual machines keep for later calls, of all in this process; what is in use stays."""
    _clear_pools()


def synchronize(device: Device) -> None:
    """Wait until the device has done all that it was given."""
    _synchronize(device, 0)


def empty(shape: Sequence[int], dtype: str, device: Device) -> Tensor:
    return _allocate(tvm_ffi.Shape(tuple(shape)), tvm_ffi.dtype(dtype), device, None)


def tensor(array: np.ndarray, device: Device) -> Tensor:
    """A copy of ``array`` on ``device``."""
    array = np.ascontiguousarray(array)
    target = empty(array.shape, array.dtype.name, device)
    _copy_from_bytes(target, ctypes.c_void_p(array.ctypes.data), array.nbytes)
    return target


def copy(array: np.ndarray, target: Tensor) -> None:
    """Put the values of ``array`` into ``target``, which may be under way until values are read from there."""
    _copy(tvm_ffi.from_dlpack(array), target)


def lend(array: np.ndarray, device: Device) -> Tensor:
    """``array`` on ``device``: itself on the CPU, where it lies as kernels assume it, else as ``copy`` puts it there."""
    if device == CPU and array.ctypes.data % ALIGNMENT == 0:
        return tvm_ffi.from_dlpack(array)
    target = empty(array.shape, array.dtype.name, device)
    copy(array, target)
    return target


def duplicate(tensor: Tensor) -> Tensor:
    """A copy on the same device."""
    target = empty(tensor.shape, str(tensor.dtype), tensor.device)
    _copy(tensor, target)
    return target


def duplicate_row(tensor: Tensor, index: int) -> Tensor:
    """A copy of ``tensor[index : index + 1]``."""
    return duplicate(_row(tensor, index))


def copy_row(source: Tensor, index: int, target: Tensor, target_index: int) -> None:
    """``target[target_index] = source[index]``, on one device; rows have the same shape and dtype."""
    _copy(_row(source, index), _row(target, target_index))


def _row(tensor: Tensor, index: int) -> Tensor:
    """``tensor[index : index + 1]``, in the same memory."""
    shape, dtype = (1, *tensor.shape[1:]), tvm_ffi.dtype(tensor.dtype)
    return _create_view(tensor, tvm_ffi.Shape(shape), dtype, index * math.prod(shape) * dtype.itemsize)


def view(tensor: Tensor) -> np.ndarray:
    """The values of ``tensor``: itself on the CPU, else a copy."""
    return np.from_dlpack(tensor) if tensor.device == CPU else to_numpy(tensor)


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A copy of ``tensor``."""
    array = np.empty(tuple(tensor.shape), str(tensor.dtype))
    _copy_to_bytes(tensor, ctypes.c_void_p(array.ctypes.data), array.nbytes)
    return array

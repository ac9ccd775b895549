"""A model's parameters in memory, in the layouts that a compiled library's kernels read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

from ..artifact.shards import StoredTensor
from ..machine.cores import physical_cores
from ..quantization.layouts import LAYOUTS, MAPPED
from ..schema import ParameterSpec
from .tvm_runtime import CPU, Device, Tensor, tensor, tvm_ffi

ALIGNMENT = 64
SLACK = 4096  # bytes that may be read after the last tensor: kernels prefetch ahead
PART_BYTES = 2 << 20  # read and permuted at once by a thread, in the cache
MAX_THREADS = 8  # they saturate the memory, and each holds a part


class Stored(Protocol):
    """An array, or one whose rows are read from a file when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> object: ...

    def __getitem__(self, rows: slice) -> np.ndarray: ...


def load_parameters(specs: Sequence[ParameterSpec], stored: Mapping[str, Stored], device: Device = CPU) -> list[Tensor]:
    """A tensor on ``device`` for each of ``specs``, a library's.

    On the CPU all are in one block of memory but tables, of which a token reads a row: those stay in their files. For other
    devices each is put together in the memory of the largest. Every core reads and permutes a few rows at a time, so that
    next to nothing is held beside it."""
    forms = [(spec.shape, np.dtype(spec.dtype)) for spec in specs]
    with ThreadPoolExecutor(min(physical_cores(), MAX_THREADS)) as pool:
        if device == CPU:
            arrays = {spec.name: array for spec in specs if (array := _mapped(spec, stored[spec.name])) is not None}
            others = {spec: form for spec, form in zip(specs, forms) if spec.name not in arrays}
            filled = _allocate(list(others.values()))
            _fill(pool, list(others), stored, filled)
            arrays |= {spec.name: array for spec, array in zip(others, filled)}
            return [tvm_ffi.from_dlpack(arrays[spec.name], require_alignment=ALIGNMENT) for spec in specs]
        tensors, scratch = [], np.empty(max(math.prod(shape) * dtype.itemsize for shape, dtype in forms), np.uint8)
        for spec, (shape, dtype) in zip(specs, forms):
            array = scratch[: math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)
            _fill(pool, [spec], stored, [array])
            tensors.append(tensor(array, device))
        return tensors


def _mapped(spec: ParameterSpec, source: Stored) -> np.ndarray | None:
    """A tensor that may stay in its file, and lies there as kernels want it."""
    if spec.layout != MAPPED or not isinstance(source, StoredTensor):
        return None
    array = source.mapped()
    return array if array.ctypes.data % ALIGNMENT == 0 else None


def _fill(
    pool: ThreadPoolExecutor,
    specs: Sequence[ParameterSpec],
    stored: Mapping[str, Stored],
    arrays: Sequence[np.ndarray],
) -> None:
    parts = []
    for spec, array in zip(specs, arrays):
        source, layout = stored[spec.name], LAYOUTS[spec.layout]
        rows = PART_BYTES * source.shape[0] // array.nbytes
        parts += [(source, rows, layout.permute, array[at]) for rows, at in layout.parts(source.shape, rows)]

    def fill(source: Stored, rows: slice, permute: Callable[[np.ndarray], np.ndarray], target: np.ndarray) -> None:
        np.copyto(target, permute(source[rows]))

    for _ in pool.map(fill, *zip(*parts)):
        pass


def _allocate(forms: Sequence[tuple[Sequence[int], np.dtype]]) -> list[np.ndarray]:
    """Arrays in one block, since numpy asks the system to back a large one with huge pages."""
    sizes = [int(np.prod(shape)) * dtype.itemsize for shape, dtype in forms]
    starts = np.cumsum([0, *(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)])
    block = np.empty(ALIGNMENT + starts[-1] + SLACK, np.uint8)
    block = block[-block.ctypes.data % ALIGNMENT :]
    return [
        block[start : start + size].view(dtype).reshape(shape)
        for start, size, (shape, dtype) in zip(starts, sizes, forms)
    ]

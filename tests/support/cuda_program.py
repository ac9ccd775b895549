"""CUDA C++ by itself on the CUDA device of ``cuda_device``, through the calls of the driver and of the runtime library."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence

import numpy as np

from support.cuda_device import RUNTIME, CpuCompiler, CudaOnCpu

TO_DEVICE, TO_HOST, ON_DEVICE = 1, 2, 3  # cudaMemcpyKind
NUMBERS = {"int": ctypes.c_int, "int64_t": ctypes.c_int64, "float": ctypes.c_float}


class CudaError(Exception):
    """Its text is the error's name and what was wrong."""


class LaunchConfig(ctypes.Structure):
    """``CUlaunchConfig``"""

    _fields_ = [
        *((f"{of}_{axis}", ctypes.c_uint) for of in ("grid", "block") for axis in "xyz"),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("attribute_count", ctypes.c_uint),
    ]


class Program:
    """Kernels of a source whose parameters are pointers and ``NUMBERS``."""

    def __init__(self, device: CudaOnCpu, source: str):
        self.device, self.source = device, source
        self.runtime = ctypes.CDLL(str(device.folder / RUNTIME))
        self.runtime.cudaGetErrorName.restype = ctypes.c_char_p
        compiler = CpuCompiler(device)
        self.image = compiler.pack({"compute_90": compiler.compile(source.encode(), "compute_90")})
        self.module = ctypes.c_void_p()
        self.check(device.driver.cuModuleLoadData(ctypes.byref(self.module), self.image))

    def check(self, error: int) -> None:
        if error:
            raise CudaError(f"{self.runtime.cudaGetErrorName(error).decode()}: {self.device.message}")

    def call(self, function: str, *arguments) -> None:
        """A function of the runtime library. Raises CudaError."""
        self.check(getattr(self.runtime, function)(*arguments))

    def made(self, function: str, *arguments) -> ctypes.c_void_p:
        """What such a function makes and returns through its first argument."""
        made = ctypes.c_void_p()
        self.call(function, ctypes.byref(made), *arguments)
        return made

    def end_capture(self, stream: ctypes.c_void_p) -> ctypes.c_void_p:
        """The graph."""
        graph = ctypes.c_void_p()
        self.call("cudaStreamEndCapture", stream, ctypes.byref(graph))
        return graph

    def upload(self, array: np.ndarray) -> ctypes.c_void_p:
        memory = self.made("cudaMalloc", ctypes.c_size_t(array.nbytes))
        self.copy(memory, array.ctypes.data, array.nbytes, TO_DEVICE)
        return memory

    def download(self, memory: ctypes.c_void_p, like: np.ndarray) -> np.ndarray:
        array = np.empty_like(like)
        self.copy(array.ctypes.data, memory, array.nbytes, TO_HOST)
        return array

    def copy(self, to, source, nbytes: int, kind: int, stream: ctypes.c_void_p | None = None) -> None:
        to, source = (x if isinstance(x, ctypes.c_void_p) else ctypes.c_void_p(x) for x in (to, source))
        self.call("cudaMemcpyAsync", to, source, ctypes.c_size_t(nbytes), kind, stream)

    def launch(
        self, name: str, grid: Sequence[int], block: Sequence[int], *arguments, stream: ctypes.c_void_p | None = None
    ) -> None:
        """Pointers as ``upload`` gives them. Raises CudaError."""
        function = ctypes.c_void_p()
        self.check(self.device.driver.cuModuleGetFunction(ctypes.byref(function), self.module, name.encode()))
        parameters = re.search(rf"\b{name}\(([^)]*)\)", self.source)[1].split(",")
        values = [
            value if isinstance(value, ctypes.c_void_p) else NUMBERS[parameter.split()[0]](value)
            for parameter, value in zip(parameters, arguments, strict=True)
        ]
        addresses = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        extents = [*grid, *[1] * (3 - len(grid)), *block, *[1] * (3 - len(block))]
        config = LaunchConfig(*extents, 0, stream, None, 0)
        self.check(self.device.driver.cuLaunchKernelEx(ctypes.byref(config), function, addresses, None))

    def run(self, name: str, grid: Sequence[int], block: Sequence[int], *arguments) -> list[np.ndarray]:
        """Launch with arrays in the place of pointers; all of them afterwards."""
        held = [self.upload(a) if isinstance(a, np.ndarray) else a for a in arguments]
        arrays = [(pointer, a) for pointer, a in zip(held, arguments) if isinstance(a, np.ndarray)]
        try:
            self.launch(name, grid, block, *held)
            return [self.download(pointer, a) for pointer, a in arrays]
        finally:
            for pointer, _ in arrays:
                self.call("cudaFree", pointer)

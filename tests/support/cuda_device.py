"""A CUDA device on a CPU: stand-ins for NVIDIA's libraries (``cuda_on_cpu``), and a compiler of CUDA C++ for them."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import tvm
import tvm_ffi
from filelock import FileLock
from tvm import tirx

from rwkv_mlc.compiler import cuda
from rwkv_mlc.compiler.kernel_source import kernels_as_source
from rwkv_mlc.compiler.link import export_library
from rwkv_mlc.compiler.pipeline import lowering
from rwkv_mlc.compiler.targets import resolve_target
from rwkv_mlc.engine.devices import open_device
from rwkv_mlc.engine.tvm_runtime import Device
from rwkv_mlc.verification.fatbin import MACHINE_CODE, MAGIC, PTX

SOURCES = Path(__file__).parent / "cuda_on_cpu"
DRIVER, RUNTIME = "libcuda.so.1", "libcudart.so.13"
RUNTIME_SOURCES = ("runtime.cc", "graph.cc")
VISIBLE = "CUDA_ON_CPU"  # the environment variable with which there is a device
LIBRARY = ("-std=c++17", "-fPIC", "-shared")
# Compiling takes longer than running. Variables begin as garbage, pointers may point to values of other types, and what C++
# does not define is an illegal instruction.
UNDEFINED = ("alignment", "bounds", "shift-exponent", "signed-integer-overflow")
KERNELS = (
    *("-O0", "-march=native", "-w", "-fvisibility=hidden", "-fno-strict-aliasing", "-ftrivial-auto-var-init=pattern"),
    *(f"-fsanitize={','.join(UNDEFINED)}", "-fsanitize-undefined-trap-on-error"),
)
KERNEL = re.compile(r'^extern "C" __global__ void (?:__launch_bounds__\((\d+)\) )?(\w+)\([^{;]*\) \{', re.MULTILINE)
DEFINITION = re.compile(r"__global__[^;{]*\{")
MOST_THREADS = "1024"  # of a block, where a kernel is not bound to fewer: TVM leaves the bound of one thread out
DEVICE_FUNCTIONS = re.compile(
    r"^// rwkv_mlc: device functions$.*?^// rwkv_mlc: end of device functions$", re.DOTALL | re.MULTILINE
)
HEADER, IMAGE = struct.Struct("<IHHQ"), struct.Struct("<HHIQ12xI4x")


class Counters(ctypes.Structure):
    """The struct of that name in ``machine.h``."""

    _fields_ = [
        (name, ctypes.c_longlong)
        for name in ("launches", "graph_launches", "live_allocations", "allocated_bytes", "module_loads", "live_graphs")
    ]


@dataclass(frozen=True)
class CudaOnCpu:
    """The libraries in ``folder``, loaded into this process before NVIDIA's own."""

    folder: Path
    driver: ctypes.CDLL

    @property
    def counters(self) -> Counters:
        """Live ones."""
        return Counters.from_address(self.driver.cuda_on_cpu_counters())

    @property
    def message(self) -> str:
        """What was wrong when a call failed last."""
        return self.driver.cuda_on_cpu_message().decode()

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which another process has this device."""
        folders = [str(self.folder), os.environ.get("LD_LIBRARY_PATH")]
        return {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, folders)), VISIBLE: "1"}

    def schedule(self, number: int) -> None:
        """How the next block is run: with bit 0 its threads go backwards, with bit 1 its asynchronous copies are early. The
        number grows by one with every block."""
        self.driver.cuda_on_cpu_schedule(number)

    def build(
        self, kernels: Mapping[str, tirx.PrimFunc], folder: Path, change: Callable[[str], str] = str
    ) -> dict[str, Callable]:
        """Functions of tensors, for ``kernel_build.call``; ``change`` may tamper with the source."""
        target, path = resolve_target("cuda -arch=sm_80"), Path(tempfile.mkdtemp(dir=folder), "kernels.so")
        named = {name: kernel.with_attr("global_symbol", name) for name, kernel in kernels.items()}
        with pytest.MonkeyPatch.context() as patch, target.tvm, kernels_as_source():
            patch.setattr(cuda, "find_compiler", lambda _: CpuCompiler(self, change=change))
            with lowering():
                export_library(tvm.compile(tvm.IRModule(named), target=target.tvm), target, path)
        device, library = open_device("cuda"), tvm_ffi.load_module(path)  # which needs the runtime
        return {name: OnDevice(library[name], device) for name in kernels}


@dataclass(frozen=True)
class OnDevice:
    """A function of tensors on ``device``."""

    function: Callable
    device: Device

    def __call__(self, *tensors: tvm.runtime.Tensor) -> None:
        self.function(*tensors)


@functools.cache
def cuda_headers() -> Path:
    """NVIDIA's; skips the test where they, or a compiler, are missing, or where stacks are not switched like this."""
    if sys.platform != "linux" or platform.machine() != "x86_64" or shutil.which("g++") is None:
        pytest.skip("CUDA on a CPU needs Linux on x86-64 and g++")
    found = importlib.util.find_spec("nvidia")
    for folder in found.submodule_search_locations if found else ():
        for header in Path(folder).glob("*/include/cuda_runtime_api.h"):
            return header.parent
    pytest.skip("CUDA on a CPU needs the headers of nvidia-cuda-runtime")


@functools.cache
def expect_no_driver() -> None:
    """Skips the test where NVIDIA's driver is installed, which TVM's runtime would find first."""
    try:
        ctypes.CDLL(DRIVER)
    except OSError:
        return
    pytest.skip("CUDA on a CPU is for machines without NVIDIA's driver")


def load(folder: Path) -> CudaOnCpu:
    """Build the libraries where ``folder`` does not have them, and load them. Skips the test where that is not possible."""
    cuda_headers()
    expect_no_driver()
    own = sorted([*SOURCES.glob("*.cc"), *SOURCES.glob("*.h"), *SOURCES.glob("*.map")])
    key = hashlib.sha256(b"".join(path.read_bytes() for path in own)).hexdigest()[:12]
    folder = folder / f"cuda_on_cpu-{key}"
    with FileLock(f"{folder}.lock"):
        if not (folder / RUNTIME).exists():
            folder.mkdir(exist_ok=True)
            driver = [str(path) for path in own if path.suffix == ".cc" and path.name not in RUNTIME_SOURCES]
            _compile(folder / DRIVER, ["-O2", f"-Wl,-soname,{DRIVER}", *driver])
            runtime = [str(SOURCES / name) for name in RUNTIME_SOURCES]
            named = [f"-Wl,-soname,{RUNTIME}", f"-Wl,--version-script={SOURCES / 'libcudart.map'}"]
            _compile(folder / RUNTIME, ["-O2", *named, *runtime, str(folder / DRIVER)])
    driver = ctypes.CDLL(str(folder / DRIVER))
    ctypes.CDLL(str(folder / RUNTIME))
    driver.cuda_on_cpu_counters.restype = ctypes.c_void_p
    driver.cuda_on_cpu_message.restype = ctypes.c_char_p
    return CudaOnCpu(folder, driver)


def _compile(written: Path, options: list[str]) -> None:
    command = ["g++", *LIBRARY, "-o", str(written), *options, f"-I{SOURCES}", f"-I{cuda_headers()}"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"g++: {result.stderr}")


def on_cpu(source: str) -> str:
    """CUDA C++ with shared arrays by kernel, without the device functions that the shim has, and with every kernel made
    known to the machine. Raises ValueError for a kernel in another form than TVM's, which would be known to nobody."""
    source = DEVICE_FUNCTIONS.sub("", source)
    kernels = list(KERNEL.finditer(source))
    written = len(DEFINITION.findall(source))
    if not kernels or len(kernels) != written:
        raise ValueError(f"{written} kernels, of which {len(kernels)} begin as TVM's do")
    ends = [*(kernel.start() for kernel in kernels[1:]), len(source)]
    parts = [source[: kernels[0].start()]]
    for kernel, end in zip(kernels, ends):
        parts.append(source[kernel.start() : end].replace("__shared__", f"__shared__({kernel[2]})"))
    return "".join([*parts, *(f"\nKERNEL({kernel[2]}, {kernel[1] or MOST_THREADS})" for kernel in kernels)])


class CpuCompiler:
    """A ``rwkv_mlc.compiler.cuda.Compiler`` whose code for ``compute_*`` runs on ``device``, in the place of PTX. Machine code
    is that of ``real``, or empty. ``change`` may tamper with the source."""

    name = "g++"

    def __init__(self, device: CudaOnCpu, real=None, change: Callable[[str], str] = str):
        self.device, self.real, self.change = device, real, change

    def compile(self, source: bytes, architecture: str) -> bytes:
        if architecture.startswith("sm_"):
            return b"" if self.real is None else self.real.compile(source, architecture)
        with tempfile.TemporaryDirectory() as folder:
            given, written = Path(folder, "kernels.cc"), Path(folder, "kernels.so")
            given.write_text('#include "cuda.h"\n' + on_cpu(self.change(source.decode())), encoding="utf-8")
            _compile(written, [*KERNELS, f"-I{SOURCES / 'shim'}", str(given), str(self.device.folder / DRIVER)])
            return written.read_bytes()

    def pack(self, codes: dict[str, bytes]) -> bytes:
        images = []
        for image, code in codes.items():
            form, _, number = image.partition("_")
            kind = MACHINE_CODE if form == "sm" else PTX
            images.append(IMAGE.pack(kind, 0, IMAGE.size, len(code), int(number)) + code)
        packed = b"".join(images)
        return HEADER.pack(MAGIC, 1, HEADER.size, len(packed)) + packed

"""Kernels as shaders: compiled by the Vulkan code generator, validated by spirv-val and run on a Vulkan device."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable

import numpy as np
import tvm
import tvm_ffi
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from rwkv_mlc.compiler.spirv import module
from rwkv_mlc.compiler.spirv.words import Capability, Op
from rwkv_mlc.compiler.targets import resolve_target
from rwkv_mlc.library_format import KernelModule, read_modules
from rwkv_mlc.verification.sources import validate_spirv
from support.kernel_build import call
from tir_kernels.builder import arg, prim_func

BLOCK = 64


def shaders_of(built: tvm.runtime.Executable) -> dict[str, bytes]:
    """The SPIR-V inside a module's bytes, by kernel."""
    blob = tvm.get_global_func("runtime.ModulePackImportsToTensor")(built.mod).numpy().tobytes()
    (data,) = [payload.data for payload in map(module.payload, read_modules(blob)) if payload.kind == "vulkan"]
    shaders = KernelModule.parse(data).code
    return {name.removesuffix("_kernel"): code[12:] for name, code in shaders.items()}


def compile_kernels(**kernels: tirx.PrimFunc) -> tvm.runtime.Executable:
    """Lowered as TVM does by itself, which kernels of its own schedules need."""
    named = {name: kernel.with_attr("global_symbol", name) for name, kernel in kernels.items()}
    built = tvm.compile(tvm.IRModule(named), target=resolve_target("vulkan").tvm)
    if shutil.which("spirv-val"):
        assert validate_spirv(shaders_of(built)) == ""
    return built


def shader_of(kernel: tirx.PrimFunc) -> bytes:
    return shaders_of(compile_kernels(kernel=kernel))["kernel"]


def opcodes(shader: bytes) -> list[tuple[int, tuple[int, ...]]]:
    """Every instruction's number and operands."""
    words = struct.unpack(f"<{len(shader) // 4}I", shader)
    found, at = [], 5
    while at < len(words):
        found.append((words[at] & 0xFFFF, words[at + 1 : at + (words[at] >> 16)]))
        at += words[at] >> 16
    return found


def capabilities(shader: bytes) -> set[Capability]:
    """What it asks of a device."""
    return {Capability(operands[0]) for op, operands in opcodes(shader) if op == Op.Capability}


def uses_int64(shader: bytes) -> bool:
    return Capability.Int64 in capabilities(shader)


class OnDevice:
    """A compiled function, for ``kernel_build.call``."""

    def __init__(self, function, device: tvm_ffi.Device):
        self.function, self.device = function, device

    def __call__(self, *tensors) -> None:
        self.function(*tensors)


def run_kernel(device: tvm_ffi.Device, kernel: tirx.PrimFunc, *arrays: np.ndarray) -> np.ndarray:
    """Compile a kernel, call it on arrays and return what the last of them became."""
    function = OnDevice(compile_kernels(kernel=kernel)["kernel"], device)
    return call(function, *arrays, written=[-1])[0]


def each_element(compute: Callable, inputs: list[str], output: str, extent: int | None = None) -> tirx.PrimFunc:
    """out[i] = compute(inputs[0][i], ...), one thread an element; i is int64 where there is no static extent."""

    @prim_func
    def kernel():
        n = T.int64() if extent is None else extent
        buffers = [arg(f"x{j}", (n,), dtype) for j, dtype in enumerate(inputs)]
        out = arg("out", (n,), output)
        with T.thread_binding(0, (n + BLOCK - 1) // BLOCK, thread="blockIdx.x") as block:
            with T.thread_binding(0, BLOCK, thread="threadIdx.x") as thread:
                i = block * BLOCK + thread
                with T.If(i < n), T.Then():
                    T.buffer_store(out, compute(*(buffer[i] for buffer in buffers)), [i])

    return kernel


def in_one_block(threads: int, emit: Callable) -> None:
    with T.thread_binding(0, 1, thread="blockIdx.x"), T.thread_binding(0, threads, thread="threadIdx.x") as thread:
        emit(thread)


def samples(dtype: str, count: int = 150, low: float = -100, high: float = 100) -> np.ndarray:
    rng = np.random.default_rng(count)
    if np.dtype(dtype).kind == "f":
        return rng.uniform(low, high, count).astype(dtype)
    low = max(int(low), 0) if np.dtype(dtype).kind == "u" else int(low)
    return rng.integers(low, int(high), count).astype(dtype)


def reversal() -> tirx.PrimFunc:
    """out = the blocks of x, each backwards, through shared memory."""

    @prim_func
    def kernel():
        n = T.int64()
        x, out = arg("x", (n, 256), "float32"), arg("out", (n, 256), "float32")
        with T.thread_binding(0, n, thread="blockIdx.x") as block:
            with T.thread_binding(0, 256, thread="threadIdx.x") as thread:
                held = T.alloc_buffer((256,), "float32", scope="shared")
                T.buffer_store(held, x[block, thread], [thread])
                T.evaluate(T.tvm_storage_sync("shared"))
                T.buffer_store(out, held[255 - thread], [block, thread])

    return kernel

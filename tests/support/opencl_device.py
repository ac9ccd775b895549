"""GPU kernels as OpenCL C on whatever OpenCL device there is; PoCL makes one of the CPU."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm import tirx
from tvm.sym import Analyzer
from tvm.tirx.build import codegen_build, split_host_device_mods

from rwkv_mlc.compiler.kernel_source import kernels_as_source
from rwkv_mlc.compiler.pipeline import lowering
from support.kernel_build import HOST_TARGET

TARGET = {"kind": "opencl", "max_num_threads": 256}


def source_of(kernels: Mapping[str, tirx.PrimFunc], target: dict) -> str:
    """The source of all kernels, each ``NAME_kernel``."""
    target = tvm.target.Target(target, host=HOST_TARGET)
    module = tvm.IRModule({name: kernel.with_attr("global_symbol", name) for name, kernel in kernels.items()})
    lower, _, finish = tirx.get_default_tir_pipeline(target)
    with lowering(), kernels_as_source():
        _, devices = split_host_device_mods(lower(tirx.transform.BindTarget(target)(module)))
        (device,) = devices.values()
        return codegen_build(finish()(device), target).inspect_source()


def split(source: str) -> dict[str, str]:
    """The kernels of a source, each by itself."""
    head = source[: source.index("__kernel")]
    parts = re.split(r"(?=__kernel void \w+\([^;{]*\) \{)", source)[1:]
    return {re.match(r"__kernel void (\w+)_kernel\(", part)[1]: head + part for part in parts}


class OpenCL:
    """Where the device lacks half precision, every half of the source is a float: index arithmetic, barriers and float32
    islands are the same, float16 rounding is not tried."""

    def __init__(self):
        self.cl = pytest.importorskip(
            "pyopencl", reason="OpenCL C runs where pyopencl and an OpenCL platform are installed"
        )
        try:
            context = self.cl.Context(self.cl.get_platforms()[0].get_devices()[:1])
        except (self.cl.Error, IndexError):
            pytest.skip("no OpenCL platform")
        self.queue = self.cl.CommandQueue(context)
        self.has_float16 = "cl_khr_fp16" in context.devices[0].extensions

    def build(self, kernels: Mapping[str, tirx.PrimFunc], change: Callable[[str], str] = str) -> dict[str, Callable]:
        """Functions of tensors, for ``kernel_build.call``; ``change`` may tamper with a kernel's source."""
        sources = split(source_of(kernels, TARGET))
        return {name: self.function(name, kernels[name], change(source)) for name, source in sources.items()}

    def function(self, name: str, kernel: tirx.PrimFunc, source: str) -> Callable:
        if not self.has_float16:
            source = re.sub(r"#ifdef cl_khr_fp16.*?#endif", "", source, flags=re.S).replace("half", "float")
        signature = re.search(rf"{name}_kernel\((.*?)\) {{", source)[1]
        parameters = [(kind, word) for kind, word in re.findall(r"(__global|long|int) .*?(\w+)(?:,|$)", signature)]
        built = []

        def run(*tensors: tvm.runtime.Tensor) -> None:
            if not built:
                built.append(getattr(self.cl.Program(self.queue.context, source).build(), f"{name}_kernel"))
            arrays, sizes = {}, {}
            for buffer, tensor in zip(kernel.params, tensors, strict=True):
                array = tensor.numpy()
                if array.dtype == np.float16 and not self.has_float16:
                    array = array.astype(np.float32)
                arrays[buffer.name] = array
                sizes |= {v: n for v, n in zip(buffer.shape, array.shape) if isinstance(v, tirx.Var)}
            flags = self.cl.mem_flags.READ_WRITE | self.cl.mem_flags.COPY_HOST_PTR
            memory = {key: self.cl.Buffer(self.queue.context, flags, hostbuf=array) for key, array in arrays.items()}
            integers = {v.name: np.int64(n) for v, n in sizes.items()}
            args = [
                memory[word.removesuffix("_ptr")] if kind == "__global" else integers[word] for kind, word in parameters
            ]
            blocks, threads = launch(kernel, sizes)
            everything = tuple(n * (threads if axis == 0 else 1) for axis, n in enumerate(blocks))
            local = (threads,) + (1,) * (len(blocks) - 1)
            if 0 not in everything:
                built[0](self.queue, everything, local, *args)
            for buffer, tensor in zip(kernel.params, tensors):
                self.cl.enqueue_copy(self.queue, arrays[buffer.name], memory[buffer.name])
                tensor.copyfrom(arrays[buffer.name].astype(tensor.dtype))

        return run


def launch(kernel: tirx.PrimFunc, sizes: Mapping[tirx.Var, int]) -> tuple[tuple[int, ...], int]:
    """Blocks by axis, and threads of a block."""
    extents, analyzer = {}, Analyzer()
    for variable, value in sizes.items():
        analyzer.bind(variable, tirx.IntImm("int64", value))

    def visit(loop: tirx.For) -> None:
        if loop.thread_binding is not None:
            extents[str(loop.thread_binding.thread_tag)] = int(analyzer.simplify(loop.extent))

    tvm_ffi.structural_walk(kernel.body, [(tirx.For, visit)])
    return tuple(extents[f"blockIdx.{axis}"] for axis in "xyz" if f"blockIdx.{axis}" in extents), extents["threadIdx.x"]

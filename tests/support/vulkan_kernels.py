"""Modules for TVM's Vulkan runtime, from kernels in GLSL."""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import tvm_ffi

from rwkv_mlc.engine.devices import open_device
from rwkv_mlc.errors import UserError

CODES = {"int": 0, "uint": 1, "float": 2, "handle": 3}
HEADER = """#version 450
#extension GL_EXT_shader_explicit_arithmetic_types : require
#extension GL_EXT_shader_16bit_storage : require
layout(local_size_x = {threads}, local_size_y = {rows}) in;
"""


@dataclass(frozen=True)
class Kernel:
    """``arguments`` are types: ``handle`` for tensors, then numbers such as ``int64``. ``body`` is that of main, where tensor
    ``i`` of the element type ``element`` is ``t{i}.data`` and number ``i`` is ``pods.n{i}``."""

    arguments: tuple[str, ...]
    body: str
    element: str = "float"
    threads: int = 64
    rows: int = 1  # of so many threads, in a block
    shared: int = 0  # floats, the array ``held``
    uniform: bool = False
    grid: tuple[str, ...] = ("blockIdx.x",)

    def shader(self, name: str) -> bytes:
        """SPIR-V with the entry point ``name``; skips the test where there is no glslang."""
        if shutil.which("glslangValidator") is None:
            pytest.skip("needs glslangValidator, of Debian's glslang-tools")
        tensors = self.arguments.count("handle")
        pods = [f"layout(offset = {8 * i}) {kind}_t n{i};" for i, kind in enumerate(self.arguments[tensors:])]
        lines = [HEADER.format(threads=self.threads, rows=self.rows)]
        lines += [
            f"layout(set = 0, binding = {i}) buffer T{i} {{ {self.element} data[]; }} t{i};" for i in range(tensors)
        ]
        if self.shared:
            lines.append(f"shared float held[{self.shared}];")
        if pods:
            place = f"set = 0, binding = {tensors}, std140" if self.uniform else "push_constant"
            lines.append(f"layout({place}) uniform Pods {{ {' '.join(pods)} }} pods;")
        source = "\n".join([*lines, f"void main() {{ {self.body} }}"])
        with tempfile.TemporaryDirectory() as folder:
            path, binary = Path(folder, "kernel.comp"), Path(folder, "kernel.spv")
            path.write_text(source, encoding="utf-8")
            command = ["glslangValidator", "-V", "--target-env", "vulkan1.1", "-e", name, "--source-entrypoint", "main"]
            result = subprocess.run([*command, "-o", binary, path], capture_output=True, text=True)
            assert result.returncode == 0, result.stdout + source
            return binary.read_bytes()


def module_bytes(kernels: Mapping[str, Kernel], shaders: Mapping[str, bytes] | None = None) -> bytes:
    """A module as TVM writes it; ``shaders`` stand for what the kernels' GLSL would give."""
    signatures = [
        text(name)
        + text(name)
        + array(data_type(kind) for kind in kernel.arguments)
        + array(text(tag) for tag in kernel.grid)
        + array(struct.pack("<i", 0) for _ in kernel.arguments)
        for name, kernel in kernels.items()
    ]
    code = []
    for name, kernel in kernels.items():
        shader = (shaders or {}).get(name) or kernel.shader(name)
        code.append(text(name) + text(struct.pack("<IQ", kernel.uniform, len(shader) // 4) + shader))
    return text("vulkan") + array(signatures) + array(code)


def load(data: bytes) -> tvm_ffi.Module:
    return tvm_ffi.get_global_func("ffi.Module.load_from_bytes.vulkan")(data)


def pointers(*tensors: tvm_ffi.Tensor) -> list[ctypes.c_void_p]:
    """Tensors as the compiled host code hands them to kernels."""
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]


def vulkan_device() -> tvm_ffi.Device:
    """Skips the test where there is none, or what it takes to build TVM's runtime is absent."""
    try:
        return open_device("vulkan")
    except UserError as error:
        pytest.skip(str(error))


def text(data: str | bytes) -> bytes:
    data = data.encode() if isinstance(data, str) else data
    return struct.pack("<Q", len(data)) + data


def array(items: Iterable[bytes]) -> bytes:
    items = list(items)
    return struct.pack("<Q", len(items)) + b"".join(items)


def data_type(kind: str) -> bytes:
    name = kind.rstrip("0123456789")
    return struct.pack("<BBH", CODES[name], int(kind[len(name) :] or 64), 1)

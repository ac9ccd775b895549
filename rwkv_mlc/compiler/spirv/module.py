"""Writes the module that TVM's Vulkan runtime reads, as TVM's hook ``target.build.vulkan``.

    module     "vulkan" | functions | u64 n x (name | shader as a string)
    functions  as in ``rwkv_mlc.library_format``
    shader     u32 flags, of which bit 0 means scalar arguments in a uniform buffer | u64 n | n words

TVM's wheel has no module of kind "vulkan" unless a Vulkan runtime is loaded. Without one, ``build`` gives a
placeholder, a ``const_loader`` whose single constant is the module's bytes, and ``payload`` puts them in its place when
a library is written.
"""

from __future__ import annotations

import struct
from functools import lru_cache

import numpy as np
import tvm
import tvm_ffi
from tvm.target import Target

from ...library_format import ImportedModule, Reader, counted, string
from .emitter import Shader, emit
from .intrinsics import register_intrinsics

PLACEHOLDER = "rwkv_mlc.vulkan"
UNIFORM_ARGUMENTS = 1


@lru_cache(None)
def register() -> None:
    """Make TVM compile for the target "vulkan". Repeated calls do nothing."""
    register_intrinsics()
    tvm_ffi.register_global_func("target.build.vulkan", build, override=True)


def build(mod: tvm.IRModule, target: Target) -> tvm.runtime.Module:
    """Compile kernels to a module of TVM's Vulkan runtime, or to a placeholder where there is none. Raises ValueError
    as ``shaders`` does."""
    data = serialize(shaders(mod, target))
    load = tvm.get_global_func("ffi.Module.load_from_bytes.vulkan", allow_missing=True)
    return placeholder(data) if load is None else load(data)


def placeholder(data: bytes) -> tvm.runtime.Module:
    """Wrap a module's bytes in a module that every TVM has."""
    constant = {PLACEHOLDER: tvm.runtime.tensor(np.frombuffer(data, np.uint8))}
    return tvm.get_global_func("ffi.Module.create.const_loader")(constant, {PLACEHOLDER: [PLACEHOLDER]})


def shaders(mod: tvm.IRModule, target: Target) -> dict[str, Shader]:
    """Emit the device functions of a module, as TVM's pipeline leaves them; return shaders by name. Raises ValueError
    with a sentence that names the kernel and what is wrong: it cannot be emitted, or is too large for the target."""
    emitted = [emit(function, target) for _, function in mod.functions_items()]
    return {shader.name: shader for shader in emitted}


def serialize(shaders: dict[str, Shader]) -> bytes:
    """Write shaders as the bytes of a Vulkan module."""
    functions = [string(name.encode()) + _function_info(shader) for name, shader in shaders.items()]
    code = [string(name.encode()) + string(_code(shader)) for name, shader in shaders.items()]
    return string(b"vulkan") + counted(functions) + counted(code)


def payload(module: ImportedModule) -> ImportedModule:
    """Replace a placeholder by the Vulkan module that it stands for; any other module stays as it is."""
    if module.kind != "const_loader":
        return module
    reader = Reader(module.data)
    names = [reader.text() for _ in range(reader.number())]
    if names != [PLACEHOLDER]:
        return module
    reader.number()  # of tensors
    reader.take(8 + 8 + 8)  # magic number, reserved, device
    (dimensions,) = struct.unpack("<I", reader.take(4))
    reader.take(4 + 8 * dimensions)  # dtype, shape
    return ImportedModule("vulkan", reader.string())


def _function_info(shader: Shader) -> bytes:
    arguments = [_argument_type(dtype) for dtype in shader.arguments]
    launch = [string(tag.encode()) for tag in shader.launch]
    extra = [struct.pack("<i", 0)] * len(arguments)
    return string(shader.name.encode()) + counted(arguments) + counted(launch) + counted(extra)


def _argument_type(dtype: str) -> bytes:
    parsed = tvm_ffi.dtype(dtype)
    return struct.pack("<BBH", parsed.type_code, parsed.bits, 1)


def _code(shader: Shader) -> bytes:
    flags = UNIFORM_ARGUMENTS if shader.uniform else 0
    return struct.pack("<IQ", flags, len(shader.words) // 4) + shader.words

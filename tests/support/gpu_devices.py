"""What GPU kernels run on in the tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import tvm
import tvm_ffi
from tvm import tirx

from rwkv_mlc.compiler.spirv.words import Capability
from support.shaders import OnDevice, capabilities, compile_kernels, shaders_of

ASKED = {Capability.Shader, Capability.StorageBuffer16BitAccess}
"""What our own kernels ask of a Vulkan device: arithmetic neither of float16 nor of int64."""


@dataclass(frozen=True)
class Gpu:
    """``build`` makes functions of tensors, for ``kernel_build.call``, from kernels by name."""

    name: str
    build: Callable[[Mapping[str, tirx.PrimFunc]], Mapping[str, Callable]]


def compile_ours(**kernels: tirx.PrimFunc) -> tvm.runtime.Executable:
    """Shaders of our own kernels, which must not ask for more than ``ASKED``."""
    built = compile_kernels(**kernels)
    for name, shader in shaders_of(built).items():
        assert capabilities(shader) <= ASKED, name
    return built


class OnVulkan(Mapping):
    """Kernels, each compiled when it is first needed."""

    def __init__(self, kernels: Mapping[str, tirx.PrimFunc], device: tvm_ffi.Device):
        self.kernels, self.device, self.built = kernels, device, {}

    def __getitem__(self, name: str) -> OnDevice:
        if name not in self.built:
            self.built[name] = OnDevice(compile_ours(kernel=self.kernels[name])["kernel"], self.device)
        return self.built[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.kernels)

    def __len__(self) -> int:
        return len(self.kernels)

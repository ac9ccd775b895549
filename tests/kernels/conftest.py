from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from support.gpu_devices import Gpu, OnVulkan
from support.opencl_device import OpenCL
from support.vulkan_kernels import vulkan_device


@pytest.fixture(scope="module", params=["opencl", "vulkan", "cuda"])
def gpu(request, libraries: Path) -> Gpu:
    """OpenCL as PoCL has it, Vulkan as lavapipe has it, and the CUDA device on the CPU."""
    match request.param:
        case "opencl":
            build = OpenCL().build
        case "vulkan":
            build = partial(OnVulkan, device=vulkan_device())
        case "cuda":
            build = partial(request.getfixturevalue("cuda_device").build, folder=libraries)
    return Gpu(request.param, build)

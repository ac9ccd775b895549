"""Where a model can run, and which of an artifact's libraries that takes."""

from __future__ import annotations

import ctypes
import importlib.util
import re
from collections.abc import Collection
from pathlib import Path

from ..errors import UserError
from ..escaping import quoted
from ..machine.drivers import CUDA_DRIVER, VULKAN_ON_CPU, vulkan_device_types
from . import vulkan
from .tvm_runtime import CPU, Device, exists, has_runtime, load_runtime, tvm_ffi

TARGETS = {"cpu": "llvm", "cuda": "cuda", "metal": "metal", "vulkan": "vulkan", "opencl": "opencl"}
BEST_FIRST = ("cuda", "metal", "vulkan", "opencl", "cpu")
NEEDS = {
    "cuda": "NVIDIA's driver and pip install nvidia-cuda-runtime",
    "metal": "a Mac",
    "opencl": "a TVM that was built with USE_OPENCL=ON",
}


def check_name(name: str) -> None:
    """Raises UserError for what is neither ``auto`` nor the name of a device, such as ``cpu`` or ``cuda:1``."""
    kind, separator, index = name.partition(":")
    if name != "auto" and (kind not in TARGETS or (separator and not re.fullmatch("[0-9]{1,4}", index))):
        raise UserError(
            f"Unknown device {quoted(name)}; valid devices are auto, {', '.join(TARGETS)}, and one of several as "
            "cuda:1."
        )


def open_device(name: str) -> Device:
    """The device of this name. Raises UserError where this machine has none, or lacks what it takes to use it."""
    check_name(name)
    kind, _, index = name.partition(":")
    if kind != "cpu" and not has_runtime(kind):
        _load_runtime(kind)
    device = tvm_ffi.device(kind, int(index or 0))
    if not exists(device) or (kind == "cpu" and device != CPU):
        raise UserError(f"This machine has no device {name}; choose another with --device.")
    return device


def choose_device(name: str, targets: Collection[str]) -> str:
    """``name``, or for ``auto`` the best device that this machine has and for which there is a library among ``targets``;
    the CPU where these are for no device. Raises UserError for an unknown name, and where the machine has none of those
    devices."""
    check_name(name)
    if name != "auto":
        return name
    kinds = [kind for kind in BEST_FIRST if TARGETS[kind] in targets]
    if "vulkan" in kinds and all(kind == VULKAN_ON_CPU for kind in vulkan_device_types()):
        kinds.sort(key="vulkan".__eq__)  # slower than the CPU itself
    reasons = []
    for kind in kinds:
        try:
            open_device(kind)
            return kind
        except UserError as reason:
            reasons.append(reason)
    if reasons:
        raise reasons[0]
    return "cpu"


def target_of(name: str) -> str:
    """The name of the target whose libraries run on a device."""
    return TARGETS[name.partition(":")[0]]


def device_of(target: str) -> str:
    """The name of the device that a target's libraries run on. Raises UserError for a target of other machines."""
    found = [kind for kind, name in TARGETS.items() if name == target]
    if not found:
        raise UserError(f"No device of this machine runs libraries for {target}.")
    return found[0]


def _load_runtime(kind: str) -> None:
    if kind == "vulkan" and not vulkan_device_types():
        raise UserError("This machine has no Vulkan device; install its driver, such as mesa-vulkan-drivers.")
    try:
        if kind == "cuda":
            _load_cuda()
        else:
            load_runtime(kind)
    except (OSError, RuntimeError) as error:
        if kind != "vulkan":
            reason = f" ({error})" if isinstance(error, OSError) else ""
            raise UserError(f"The device {kind} needs {NEEDS[kind]}{reason}.") from None
        vulkan.load()


def _load_cuda() -> None:
    """With the CUDA runtime that the system finds, or else that of PyPI's packages, where it does not look. Raises OSError
    before anything else where the driver is missing."""
    ctypes.CDLL(CUDA_DRIVER)
    try:
        load_runtime("cuda")
    except (OSError, RuntimeError):
        found = importlib.util.find_spec("nvidia")
        for folder in (found and found.submodule_search_locations) or ():
            for library in Path(folder).glob("*/lib/libcudart.so.*"):
                ctypes.CDLL(str(library))
        load_runtime("cuda")

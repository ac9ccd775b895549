"""Which GPUs this machine has, asked of the drivers themselves: no compiler and no runtime is needed."""

from __future__ import annotations

import ctypes
import platform
import sys
from typing import Literal

CUDA_DRIVER = "libcuda.so.1"
CREATE_INFO = 1  # VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO
VULKAN_ON_CPU = 4  # VK_PHYSICAL_DEVICE_TYPE_CPU
PROPERTIES_SIZE = 1024  # bytes; VkPhysicalDeviceProperties has 824


def best_device() -> Literal["cuda", "metal", "vulkan", "cpu"]:
    """The fastest kind of device here."""
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return "metal"
    if count_cuda_devices():
        return "cuda"
    return "vulkan" if any(kind != VULKAN_ON_CPU for kind in vulkan_device_types()) else "cpu"


def count_cuda_devices() -> int:
    try:
        driver = ctypes.CDLL(CUDA_DRIVER)
    except OSError:
        return 0
    count = ctypes.c_int()
    return count.value if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0


class _InstanceCreateInfo(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_uint32),
        ("next", ctypes.c_void_p),
        ("flags", ctypes.c_uint32),
        ("application", ctypes.c_void_p),
        ("layers", ctypes.c_uint32),
        ("layer_names", ctypes.c_void_p),
        ("extensions", ctypes.c_uint32),
        ("extension_names", ctypes.c_void_p),
    ]


def vulkan_device_types() -> list[int]:
    """Vulkan's ``VkPhysicalDeviceType`` of every device that its drivers offer."""
    try:
        vulkan = ctypes.CDLL("libvulkan.so.1")
    except OSError:
        return []
    instance, count = ctypes.c_void_p(), ctypes.c_uint32()
    if vulkan.vkCreateInstance(ctypes.byref(_InstanceCreateInfo(type=CREATE_INFO)), None, ctypes.byref(instance)):
        return []
    try:
        vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), None)
        devices = (ctypes.c_void_p * count.value)()
        vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), devices)
        return [_vulkan_device_type(vulkan, device) for device in devices[: count.value]]
    finally:
        vulkan.vkDestroyInstance(instance, None)


def _vulkan_device_type(vulkan: ctypes.CDLL, device: int | None) -> int:
    """The fifth 32-bit number of its ``VkPhysicalDeviceProperties``."""
    properties = (ctypes.c_uint32 * (PROPERTIES_SIZE // 4))()
    vulkan.vkGetPhysicalDeviceProperties(ctypes.c_void_p(device), properties)
    return properties[4]

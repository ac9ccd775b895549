"""How much memory a model took."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

from ..engine.tvm_runtime import Device, tvm_ffi

MEMORY = (14, 15)  # attributes of a device: in total, and available


def peak_memory() -> int:
    """Bytes of the process's largest resident set so far. Linux's ``ru_maxrss`` would begin with that of the process that
    started this one, ``VmHWM`` does not."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text(encoding="utf-8"))[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def device_memory(device: Device) -> int | None:
    """Bytes of the device's own memory that are in use, by whatever process; None where its runtime does not tell."""
    attribute = tvm_ffi.get_global_func("runtime.GetDeviceAttr")
    total, available = (attribute(device.dlpack_device_type(), device.index, which) for which in MEMORY)
    return None if available is None else total - available

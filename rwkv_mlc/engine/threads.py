"""How many threads run the kernels of a CPU library."""

from __future__ import annotations

import os
from pathlib import Path

from .tvm_runtime import tvm_ffi

VARIABLE = "TVM_NUM_THREADS"


def physical_cores() -> int:
    """Cores this process may run on; two hardware threads of one core count once, as they share its vector units."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = set()
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text(encoding="ascii").strip() if siblings.exists() else str(cpu))
    return len(cores)


def start_threads(count: int | None = None) -> int:
    """Start TVM's thread pool and return its size: ``count``, or ``TVM_NUM_THREADS`` where that is set, or every physical
    core. TVM's own default is half of the logical CPUs, too few without hyper-threading. A process has one pool: once it
    runs, its size stays."""
    if count is not None:
        os.environ[VARIABLE] = str(count)
    os.environ.setdefault(VARIABLE, str(physical_cores()))
    return tvm_ffi.get_global_func("runtime.NumThreads")()

"""How many threads run the kernels of a CPU library."""

from __future__ import annotations

import os

from ..machine.cores import physical_cores
from .tvm_runtime import tvm_ffi

VARIABLE = "TVM_NUM_THREADS"


def start_threads(count: int | None = None) -> int:
    """Start TVM's thread pool and return its size: ``count``, or ``TVM_NUM_THREADS`` where that is set, or every physical
    core. TVM's own default is half of the logical CPUs, too few without hyper-threading. A process has one pool: once it
    runs, its size stays."""
    if count is not None:
        os.environ[VARIABLE] = str(count)
    os.environ.setdefault(VARIABLE, str(physical_cores()))
    return tvm_ffi.get_global_func("runtime.NumThreads")()

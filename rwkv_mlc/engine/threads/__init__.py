"""The threads that run the kernels of CPU libraries: a pool of our own, or TVM's where ours cannot be built.

A library calls its pool through two pointers, which TVM fills from a registry when it loads the library; what was
registered last counts. Ours is in ``pool.cc``; docs/engine.md says how it behaves beside other programs.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from ...errors import UserError
from ...escaping import quoted
from ...machine.cores import usable_cores
from ...numerals import integer
from ..native import NativeLibrary
from ..tvm_runtime import libinfo, tvm_ffi

THREADS, TVM_THREADS = "RWKV_MLC_THREADS", "TVM_NUM_THREADS"  # environment variables, the first goes before the second
POOL = "RWKV_MLC_POOL"  # tvm takes TVM's pool even where there is ours
MOST = 256  # threads of our pool, and of TVM's
CALLED = {"__TVMBackendParallelLaunch": "rwkv_mlc_launch", "__TVMBackendParallelBarrier": "rwkv_mlc_barrier"}
LIBRARY = NativeLibrary(
    name="threads",
    title="The thread pool",
    file="librwkv_mlc_threads.so",
    folder=Path(__file__).parent,
    flags=("-std=c++20", "-O2", "-fPIC", "-pthread"),
    linked=("-pthread",),
)


@dataclass(frozen=True)
class ThreadPool:
    """``threads`` of them run a kernel, the caller's among them; ``reason`` says why they are TVM's."""

    threads: int
    owner: Literal["rwkv_mlc", "tvm"]
    reason: str = ""

    def __str__(self) -> str:
        threads = f"{self.threads} thread" + "s" * (self.threads != 1)
        return threads if self.owner == "rwkv_mlc" else f"{threads} of TVM's pool ({self.reason})"


def start_threads(count: int | None = None) -> ThreadPool:
    """Give the libraries that are loaded from now on the process's pool, of ``count`` threads: those of an earlier call
    where not given, or ``RWKV_MLC_THREADS``, or ``TVM_NUM_THREADS``, or as many as there are ``usable_cores``. Threads
    start with the first kernel, and a later call may change their number; that of TVM's pool stays once it runs. Raises
    UserError for a count or a variable that is no number from 1 to 256, and for an unknown ``RWKV_MLC_POOL``."""
    global _count
    _count = _checked(count, "The number of threads") if count is not None else _count or _default_count()
    own, reason = _own_pool(os.environ.get(POOL, "rwkv_mlc"))
    if own is not None:
        own.rwkv_mlc_set_threads(_count)
        return ThreadPool(_count, "rwkv_mlc")
    os.environ[TVM_THREADS] = str(_count)
    os.environ.setdefault("TVM_BIND_THREADS", "0")  # it would bind to the first cores, whichever the process may use
    return ThreadPool(tvm_ffi.get_global_func("runtime.NumThreads")(), "tvm", reason)


_count: int | None = None


def _default_count() -> int:
    for variable in (THREADS, TVM_THREADS):
        if value := os.environ.get(variable):
            return _checked(value, variable)
    return min(usable_cores(), MOST)


def _checked(count: int | str, name: str) -> int:
    with contextlib.suppress(ValueError):
        if 1 <= (number := integer(str(count))) <= MOST:
            return number
    raise UserError(f"{name} must lie between 1 and {MOST}, not {quoted(count)}.")


@cache
def _own_pool(wanted: str) -> tuple[ctypes.CDLL | None, str]:
    """Our pool, registered for libraries to come, or why there is none."""
    if wanted == "tvm":
        return None, f"as {POOL} says"
    if wanted != "rwkv_mlc":
        raise UserError(f"{POOL} must be rwkv_mlc or tvm, not {quoted(wanted)}.")
    if sys.platform not in ("linux", "darwin"):
        return None, f"there is no other for {sys.platform}"
    try:
        pool = ctypes.CDLL(str(LIBRARY.build()))
    except (UserError, OSError) as error:
        return None, str(error).rstrip(".")
    ffi = ctypes.CDLL(libinfo.find_libtvm_ffi())
    pool.rwkv_mlc_set_raise(ffi.TVMFFIErrorSetRaisedFromCStr)
    for name, function in CALLED.items():
        pointer = ctypes.cast(getattr(pool, function), ctypes.c_void_p)
        if ffi.TVMFFIEnvModRegisterContextSymbol(name.encode(), pointer):
            raise RuntimeError(f"TVM refused {name}")
    return pool, ""

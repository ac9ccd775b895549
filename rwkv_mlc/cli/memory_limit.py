"""The limit of the address space (``ulimit -v``), of which libraries below Python do not always say that it is reached."""

from __future__ import annotations

import re
from pathlib import Path

LEAST = 128 << 20  # bytes; with less, OpenBLAS ends the process while NumPy loads it
ROOM = 64 << 20  # bytes; what a library asks for at once


def check_limit() -> None:
    """Raises MemoryError for a limit with which no command could begin."""
    limit = _limit()
    if limit is not None and limit < LEAST:
        raise MemoryError


def is_reached() -> bool:
    """Whether so much was taken that what has failed may have failed for that."""
    limit, status = _limit(), Path("/proc/self/status")
    if limit is None or not status.exists():
        return False
    peak = re.search(r"VmPeak:\s*(\d+) kB", status.read_text(encoding="utf-8"))
    return peak is not None and 1024 * int(peak[1]) > limit - ROOM


def _limit() -> int | None:
    """Bytes; None where there is none."""
    try:
        import resource
    except ImportError:  # on Windows
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else limit

"""How much of this machine's CPU a process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path, PurePosixPath

SYSTEM = Path("/")


def usable_cores(system: Path = SYSTEM) -> int:
    """Threads that can compute at the same time: every physical core that the process may run on, of whatever class, or
    fewer where its control groups allow less processor time than that, rounded up to whole cores. ``system`` is the root
    of the file system."""
    return math.ceil(min(physical_cores(system), quota(system)))


def physical_cores(system: Path = SYSTEM) -> int:
    """Cores this process may run on; two hardware threads of one core count once, as they share its vector units."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = set()
    for cpu in allowed:
        siblings = system / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        cores.add(siblings.read_text(encoding="ascii").strip() if siblings.exists() else str(cpu))
    return len(cores)


def quota(system: Path = SYSTEM) -> float:
    """Cores' worth of processor time that the process's control groups allow, of either version; infinite without a limit."""
    membership = system / "proc/self/cgroup"
    if not membership.exists():
        return math.inf
    least = math.inf
    for line in membership.read_text(encoding="utf-8").splitlines():
        _, controllers, group = line.split(":", 2)
        if not controllers:
            folder = system / "sys/fs/cgroup"
        elif "cpu" in controllers.split(","):
            folder = system / "sys/fs/cgroup/cpu"
        else:
            continue
        path = PurePosixPath(group.lstrip("/"))
        # In a container the path may be that of the host, and the container's own group is the folder itself.
        for below in (path, *path.parents):
            least = min(least, _limit(folder / below))
    return least


def _limit(group: Path) -> float:
    """Of one control group: ``cpu.max`` is "quota period" with "max" for none, version 1 has two files and -1."""
    unified, old = group / "cpu.max", group / "cpu.cfs_quota_us"
    if unified.exists():
        allowed, period = unified.read_text(encoding="ascii").split()
    elif old.exists():
        allowed = old.read_text(encoding="ascii").strip()
        period = (group / "cpu.cfs_period_us").read_text(encoding="ascii")
    else:
        return math.inf
    return math.inf if allowed in ("max", "-1") else int(allowed) / int(period)

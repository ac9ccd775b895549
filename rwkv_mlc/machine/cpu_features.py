"""CPU features that a library may need and whether this machine has them."""

from __future__ import annotations

import platform
from pathlib import Path

X86_FEATURES = (
    "sse3 ssse3 sse4.1 sse4.2 popcnt cx16 avx avx2 fma f16c bmi bmi2 lzcnt movbe "
    "avx512f avx512bw avx512dq avx512vl avx512cd avx512vnni avx512vbmi avx512vbmi2 avx512ifma avx512bitalg "
    "avx512vpopcntdq avx512bf16 avx512fp16 avxvnni gfni vaes vpclmulqdq amx-tile amx-int8 amx-bf16"
).split()
ARM_FEATURES = "neon fullfp16 dotprod i8mm bf16 sve sve2".split()
REQUIRED_FEATURES = (*X86_FEATURES, *ARM_FEATURES)

LINUX_NAMES = {
    "sse3": "pni",
    "bmi": "bmi1",
    "lzcnt": "abm",
    "neon": "asimd",
    "fullfp16": "asimdhp",
    "dotprod": "asimddp",
}


def host_features() -> set[str] | None:
    """LLVM's names of the features in ``REQUIRED_FEATURES`` that this CPU has; None where the system does not tell."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return None
    flags: set[str] = set()
    for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            flags.update(value.split())
    plain = {flag.replace("_", "") for flag in flags}
    return {
        name
        for name in REQUIRED_FEATURES
        if LINUX_NAMES.get(name, name) in flags or name.replace(".", "").replace("-", "") in plain
    }


def host_architecture() -> str:
    """The first part of an LLVM triple for this machine: ``x86_64`` or ``aarch64``."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)

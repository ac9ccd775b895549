"""Demo models as programs, each packaged once a test run."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pytest
from filelock import FileLock

from rwkv_mlc import Engine
from rwkv_mlc.building import BuildOptions, build
from rwkv_mlc.interfaces import native
from rwkv_mlc.machine.cpu_features import host_architecture, host_features
from rwkv_mlc.packaging import SYSTEMS, package
from support.compiled import QUICK
from support.paths import DEMOS

SYSTEM = f"linux-{host_architecture()}"


@dataclass(frozen=True)
class Program:
    """``path`` is what the artifact ``dist`` was packaged as."""

    path: Path
    dist: Path

    def __call__(self, *arguments: str, text: str | bytes = b"", level: str | None = None, code: int = 0) -> str:
        """What it prints, on stderr where it fails, with ``text`` on its standard input; ``code`` is how it should end."""
        environment = os.environ | ({"RWKV_MLC_CPU": level} if level else {})
        given = text.encode() if isinstance(text, str) else text
        ended = subprocess.run([self.path, *arguments], input=given, capture_output=True, env=environment, timeout=120)
        assert ended.returncode == code, ended.stderr.decode()
        return (ended.stderr if code else ended.stdout).decode()

    @cached_property
    def engine(self) -> Engine:
        """The artifact in Python."""
        return Engine(self.dist)


@pytest.fixture(scope="session")
def levels() -> list[str]:
    """The kinds of CPU that this machine's is, best first."""
    from rwkv_mlc.compiler.targets import resolve_target

    if SYSTEM not in SYSTEMS:
        pytest.skip(f"no program is packaged for {SYSTEM}")
    system, features = SYSTEMS[SYSTEM], host_features() or set()
    return [
        level.name
        for level in system.levels
        if set(resolve_target(f"llvm -mtriple={system.triple} {level.options}").features) <= features
    ]


@pytest.fixture(scope="session")
def programs(artifacts, levels) -> Callable[..., Program]:
    """Package a demo model, with the code for some ``levels`` or for the best of this machine's CPU. What LLVM makes of the
    kernels is not the subject: they are not optimized, and those alone are compiled that a program calls."""
    pytest.importorskip("ziglang", reason="programs are compiled by zig (pip install ziglang)")
    folder, kept = artifacts / "programs", dict[Path, Program]()
    folder.mkdir(exist_ok=True)
    system = SYSTEMS[SYSTEM]
    quick = tuple(replace(level, options=f"{level.options} -opt-level=0") for level in system.levels)
    functions = {name: native.FUNCTIONS[name] for name in ("prefill", "decode")}

    def packaged(name: str, chosen: Sequence[str] = levels[:1], template: str = "rwkv_world") -> Program:
        program = Program(folder / name, folder / "dist" / f"{name}-q4f16_1")
        with FileLock(folder / f"{name}.lock"), pytest.MonkeyPatch.context() as patch:
            patch.setattr(native, "FUNCTIONS", functions)
            patch.setitem(SYSTEMS, SYSTEM, replace(system, levels=quick))
            if not program.path.exists():
                build(DEMOS / name, QUICK, artifact_path=folder / "dist", options=BuildOptions(template=template))
                package(program.dist, SYSTEM, program.path, levels=chosen)
        return kept.setdefault(program.path, program)

    return packaged

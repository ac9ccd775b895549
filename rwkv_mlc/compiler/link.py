"""From generated code to a library file."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tvm.runtime import Executable
from tvm.support import cc, tar

from ..cpu_features import host_architecture
from ..errors import UserError
from .targets import CompileTarget

# A library and its object files take a few MB, whatever the model. LLVM ends the process when it cannot write them.
ROOM = 32 << 20

Linker = Callable[[str, list[str]], None]


def find_linker(target: CompileTarget, suffix: str) -> Linker:
    """What makes a library out of object files: this machine's C++ compiler for its own architecture, zig (PyPI's
    ``ziglang``) for others; ``.tar`` packs the object files, to be linked into a program later.

    Raises UserError where there is none."""
    if suffix == ".tar":
        return tar.tar
    architecture = target.attributes["mtriple"].partition("-")[0]
    if architecture != host_architecture():
        return _zig(architecture)
    compiler = cc.get_cc()
    if compiler is None:
        raise UserError("Linking a library needs a C++ compiler; install g++ or clang and repeat.")
    if shutil.which(compiler) is None:
        raise UserError(f"There is no C++ compiler {compiler}, which CXX or CC names; unset the variable.")
    return cc.create_shared


def export_library(executable: Executable, target: CompileTarget, path: Path) -> None:
    """Write a library; its object files lie in a folder beside it for the time being.

    Raises UserError where there is no linker or it fails, and OSError when the disk is full."""
    linker = find_linker(target, path.suffix)
    if shutil.disk_usage(path.parent).free < ROOM:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with tempfile.TemporaryDirectory(dir=path.parent) as objects:
        try:
            executable.export_library(str(path), fcompile=linker, workspace_dir=objects)
        except RuntimeError as error:
            title, _, output = str(error).partition("\n")
            if title not in ("Compilation error:", "Tar error:"):
                raise
            if os.strerror(errno.ENOSPC) in output:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
            raise UserError(f"Linking {path.name} failed ({output.splitlines()[0]}); check the linker.") from None


def _zig(architecture: str) -> Linker:
    try:
        import ziglang  # noqa: F401
    except ImportError:
        raise UserError(f"Linking for {architecture} needs zig; install it with pip install ziglang.") from None

    def link(output: str, objects: list[str]) -> None:
        zig = [sys.executable, "-m", "ziglang", "cc", "-target", f"{architecture}-linux-gnu"]
        result = subprocess.run([*zig, "-shared", "-o", output, *objects], capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(f"Compilation error:\n{result.stderr}")

    return link

"""From generated code to a library file."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from pathlib import Path

from tvm.runtime import Executable
from tvm.support import cc

from ..cpu_features import host_architecture
from ..errors import UserError
from .targets import CompileTarget


def export_library(executable: Executable, target: CompileTarget, path: Path) -> None:
    """Write a shared library (or, for the suffix ``.tar``, its object files).

    This machine's C++ compiler links for this architecture, zig (PyPI's ``ziglang``) for others. Raises UserError where
    there is none, and OSError when the disk is full."""
    options = {}
    triple = target.attributes["mtriple"]
    architecture = triple.partition("-")[0]
    if path.suffix != ".tar":
        if architecture != host_architecture():
            options["fcompile"] = _zig(architecture)
        elif not (os.environ.get("CXX") or any(map(shutil.which, ("g++", "clang++", "clang", "c++")))):
            raise UserError("Linking a library needs a C++ compiler; install g++ or clang and repeat.")
    try:
        executable.export_library(str(path), **options)
    except RuntimeError as error:
        if os.strerror(errno.ENOSPC) in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
        raise


def _zig(architecture: str):
    try:
        import ziglang  # noqa: F401
    except ImportError:
        raise UserError(f"Linking for {architecture} needs zig; install it with pip install ziglang.") from None
    options = ["-target", f"{architecture}-linux-gnu"]
    return cc.cross_compiler([sys.executable, "-m", "ziglang", "c++"], options=options)

"""zig, a C and C++ compiler for every system, with the systems' own libraries in source; PyPI's ``ziglang``."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

from ..errors import UserError


def check_zig() -> None:
    """Raises UserError where there is none."""
    if importlib.util.find_spec("ziglang") is None:
        raise UserError("Packaging compiles a program with zig; install it with pip install 'rwkv_mlc[package]'.")


def zig(*arguments: str | Path) -> None:
    """Run a command of zig's. Raises UserError where it fails, with the first error that it gives."""
    result = subprocess.run([sys.executable, "-m", "ziglang", *arguments], capture_output=True, text=True)
    if result.returncode:
        lines = result.stderr.splitlines()
        reason = next((line for line in lines if "error" in line), lines[0] if lines else "no message")
        raise UserError(
            f"zig cannot {arguments[0]} ({reason}); install the version of ziglang that rwkv_mlc was tested with."
        )

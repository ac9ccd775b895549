"""Kernels shipped as source or as SPIR-V, held to what the tools of this machine say of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

STUBS = Path(__file__).parent / "stubs"  # of Apple's headers
CLANG = re.compile(r"clang(-\d+)?")
CLANG_OPTIONS = {
    "cl": ["-x", "cl", "-cl-std=CL1.2", "-target", "spir64"],
    "metal": ["-x", "c++", "-std=c++14", "-target", "aarch64-none-elf", f"-I{STUBS}", "-Wno-unknown-attributes"],
}


def find_clang() -> str | None:
    """The path of ``clang``, or of the newest ``clang-N``."""
    found = {path.name: path for folder in os.get_exec_path() for path in Path(folder).glob("clang*")}
    names = [name for name in found if CLANG.fullmatch(name)]
    newest = max(names, key=lambda name: (name == "clang", int(name.partition("-")[2] or 0)), default=None)
    return str(found[newest]) if newest else None


def parse_sources(clang: str, language: str, sources: Mapping[str, bytes]) -> str:
    """The first error of clang's parser in sources of ``language`` ("cl" or "metal"), and where; empty for none."""
    with tempfile.TemporaryDirectory() as folder:
        files = {Path(folder, str(i)): name or "source" for i, name in enumerate(sources)}
        for file, source in zip(files, sources.values()):
            file.write_bytes(source)
        command = [clang, *CLANG_OPTIONS[language], "-fsyntax-only", "-w", *map(str, files)]
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode == 0:
        return ""
    message = next((line for line in result.stderr.splitlines() if "error:" in line), result.stderr)
    file, _, rest = message.partition(":")
    return f"{files.get(Path(file), file)}:{rest}"


def validate_spirv(shaders: Mapping[str, bytes]) -> str:
    """The first message of ``spirv-val`` about Vulkan 1.1 shaders; empty for none. Needs ``spirv-val``."""
    validator = shutil.which("spirv-val")
    for name, shader in shaders.items():
        command = [validator, "--target-env", "vulkan1.1", "-"]
        result = subprocess.run(command, input=shader, capture_output=True)
        if result.returncode:
            return f"{name}: {result.stderr.decode(errors='replace').strip()}"
    return ""

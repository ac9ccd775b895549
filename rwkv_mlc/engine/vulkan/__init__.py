"""TVM's Vulkan runtime, which its PyPI package lacks. It is built from the C++ files here when it is first needed."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

from ...errors import UserError
from ..kept_library import kept_library
from ..tvm_runtime import libinfo, tvm_folder

LIBRARY = "libtvm_runtime_vulkan.so"
FLAGS = ("-std=c++17", "-O2", "-fPIC")
HEADERS = (
    "libvulkan-dev (Debian and Ubuntu), vulkan-loader-devel (Fedora) or vulkan-headers and vulkan-icd-loader (Arch)"
)


def load() -> None:
    """Make TVM know ``vulkan`` devices. Raises UserError, which says what to install, where the runtime cannot be
    built."""
    library = build()
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        raise UserError(
            f"The Vulkan runtime cannot be loaded ({error}); install Vulkan's loader, libvulkan1."
        ) from None


def build() -> Path:
    """Build the runtime, or find it in the user's cache where it was built before for these sources and this TVM.

    Raises UserError where a compiler or headers are missing, or the cache cannot be written."""
    sources = sorted(Path(__file__).parent.glob("*.cc"))
    folder = _cache() / f"vulkan-{_key()}"
    try:
        return kept_library(folder, LIBRARY, "The Vulkan runtime", lambda scratch: _compile(sources, scratch))
    except OSError as error:
        raise UserError(f"The Vulkan runtime cannot be written to {folder}: {error}; set XDG_CACHE_HOME.") from None


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rwkv_mlc"


def _key() -> str:
    versions = [metadata.version(package) for package in ("apache-tvm", "apache-tvm-ffi")]
    digest = hashlib.sha256(" ".join([*versions, platform.machine(), *FLAGS]).encode())
    for path in sorted(Path(__file__).parent.glob("*.[ch]*")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _compile(sources: list[Path], folder: Path) -> Path:
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), None)
    if compiler is None:
        raise UserError("Vulkan needs a C++ compiler, which builds its runtime once; install g++ or clang and repeat.")
    include = [libinfo.find_include_path(), libinfo.find_dlpack_include_path(), tvm_folder / "include"]
    flags = [*FLAGS, *(f"-I{path}" for path in include)]
    objects = [folder / f"{source.stem}.o" for source in sources]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(lambda s, o: _run(compiler, *flags, "-c", s, "-o", o), sources, objects):
            pass
    linked = [tvm_folder / "lib" / "libtvm_runtime.so", libinfo.find_libtvm_ffi(), "-lvulkan"]
    _run(compiler, "-shared", *objects, *linked, "-o", folder / LIBRARY)
    return folder / LIBRARY


def _run(*command: str | Path) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode == 0:
        return
    if "vulkan/vulkan.h" in result.stderr or "-lvulkan" in result.stderr:
        raise UserError(f"Vulkan needs its headers, which its runtime is built with once; install {HEADERS}.")
    lines = [line for line in result.stderr.splitlines() if "error" in line] or ["no message"]
    raise UserError(f"The Vulkan runtime cannot be built ({lines[0]}); install a newer g++ or clang.")

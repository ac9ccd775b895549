"""TVM's Vulkan runtime, which its PyPI package lacks. It is built from the C++ files here when it is first needed."""

from __future__ import annotations

import ctypes
from pathlib import Path

from ...errors import UserError
from ..native import NativeLibrary
from ..tvm_runtime import libinfo, tvm_folder

FLAGS = ("-std=c++17", "-O2", "-fPIC")
NO_HEADERS = (
    "Vulkan needs its headers, which its runtime is built with once; install libvulkan-dev (Debian and Ubuntu), "
    "vulkan-loader-devel (Fedora) or vulkan-headers and vulkan-icd-loader (Arch)."
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
    """Build the runtime, or find it in the cache for these sources and this TVM. Raises UserError as
    ``NativeLibrary.build``."""
    return NativeLibrary(
        name="vulkan",
        title="The Vulkan runtime",
        file="libtvm_runtime_vulkan.so",
        folder=Path(__file__).parent,
        flags=FLAGS,
        include=(libinfo.find_include_path(), libinfo.find_dlpack_include_path(), tvm_folder / "include"),
        linked=(tvm_folder / "lib" / "libtvm_runtime.so", libinfo.find_libtvm_ffi(), "-lvulkan"),
        takes_long=True,
        packages=("apache-tvm", "apache-tvm-ffi"),
        missing={"vulkan/vulkan.h": NO_HEADERS, "-lvulkan": NO_HEADERS},
    ).build()

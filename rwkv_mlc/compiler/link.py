"""Links generated code to a library file."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import tvm
from tvm.runtime import Executable, Module
from tvm.support import cc, tar

from ..errors import UserError
from ..library_format import ALL, ImportedModule, KernelModule, rewrite_modules
from ..machine.cpu_features import host_architecture
from . import cuda
from .spirv.module import payload
from .targets import CompileTarget

# A library and its object files take a few MB, whatever the model. LLVM ends the process when it cannot write them.
ROOM = 32 << 20
ANDROID_API = 26  # Android 8.0, the first that a library runs on
DECLARATION = re.compile(rb"^__kernel void \w+\([^)]*\);\n", re.MULTILINE)

Linker = Callable[[str, list[str]], None]
Progress = Callable[[int, int, str], None]


def check_tools(target: CompileTarget, suffix: str) -> None:
    """Raises UserError where this machine lacks a tool that ``export_library`` will need."""
    find_linker(target, suffix)
    if target.architectures:
        cuda.find_compiler(target.architectures)


def find_linker(target: CompileTarget, suffix: str) -> Linker:
    """Find what makes a library out of object files: this machine's C++ compiler for its own system, the NDK's for
    Android, zig (PyPI's ``ziglang``) for others. A ``.tar`` packs the object files, to be linked into a program later.

    Raises UserError where there is none."""
    if suffix == ".tar":
        return tar.tar
    architecture, system = _machine(target.triple)
    if system == "android":
        return _linker([_ndk_compiler(architecture)])
    if (architecture, system) != (host_architecture(), "macos" if sys.platform == "darwin" else "linux"):
        return _linker(_zig(architecture, system, target.triple), system)
    compiler = cc.get_cc()
    if compiler is None:
        raise UserError("Linking a library needs a C++ compiler; install g++ or clang and repeat.")
    if shutil.which(compiler) is None:
        raise UserError(f"There is no C++ compiler {compiler}, which CXX or CC names; unset the variable.")
    minimum = [f"-mmacosx-version-min={_macos_version(target.triple)}"] if system == "macos" else []
    return _linker([compiler, *minimum], system)


def export_library(executable: Executable, target: CompileTarget, path: Path, progress: Progress | None = None) -> None:
    """Write a library; its object files lie in a folder beside it for the time being. ``progress`` is called with (how
    many are done, of how many, the last one) while code is compiled for many architectures.

    Raises UserError where there is no linker or it fails, and OSError when the disk is full."""
    linker = find_linker(target, path.suffix)
    if shutil.disk_usage(path.parent).free < ROOM:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def pack_imports(module: Module, is_system_lib: bool, prefix: str, folder: str) -> str:
        """Do what TVM's own step of this name does, but with the GPU's modules in the form that the runtime reads."""
        blob = tvm.get_global_func("runtime.ModulePackImportsToTensor")(module).numpy().tobytes()
        blob = rewrite_modules(blob, lambda module: _final_form(module, target, progress))
        pack, host = tvm.get_global_func("codegen.codegen_blob"), str(target.tvm.host or target.tvm)
        packed = Path(folder) / f"{prefix}devc.o"
        pack(blob, is_system_lib, host, prefix).write_to_file(str(packed))
        return str(packed)

    with tempfile.TemporaryDirectory(dir=path.parent) as objects:
        try:
            executable.mod.export_library(str(path), fcompile=linker, fpack_imports=pack_imports, workspace_dir=objects)
        except RuntimeError as error:
            title, _, output = str(error).partition("\n")
            if title not in ("Compilation error:", "Tar error:"):
                raise
            if os.strerror(errno.ENOSPC) in output:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
            raise UserError(f"Linking {path.name} failed ({output.splitlines()[0]}); check the linker.") from None


def _final_form(module: ImportedModule, target: CompileTarget, progress: Progress | None) -> ImportedModule:
    """Turn a module of the code generator into what the library holds: machine code instead of CUDA's source, OpenCL's
    source without the declarations of all kernels before each, and Vulkan's shaders out of the placeholder that carries
    them."""
    if module.kind not in ("cuda", "opencl"):
        return payload(module)
    kernels = KernelModule.parse(module.data)
    form, code = kernels.format, kernels.code[ALL]
    if module.kind == "cuda":
        form, code = "fatbin", cuda.compile_fatbin(code, target.architectures, progress)
    else:
        code = DECLARATION.sub(b"", code)
    return ImportedModule(module.kind, kernels.with_code(form, code).serialize())


def _machine(triple: str) -> tuple[str, str]:
    """Read architecture and system off a triple: ("aarch64", "macos") for ``arm64-apple-macos11.0``."""
    architecture = triple.partition("-")[0].replace("arm64", "aarch64")
    systems = {"android": "android", "apple": "macos"}
    return architecture, next((system for mark, system in systems.items() if mark in triple), "linux")


def _macos_version(triple: str) -> str:
    """Read the oldest macOS that a library is for off a triple."""
    version = re.search(r"macosx?([\d.]+)", triple)
    return version[1] if version else "11.0"


def _zig(architecture: str, system: str, triple: str) -> list[str]:
    try:
        import ziglang  # noqa: F401
    except ImportError:
        raise UserError(
            f"Linking for {architecture} {system} needs zig; install it with pip install ziglang."
        ) from None
    machine = f"{architecture}-macos.{_macos_version(triple)}" if system == "macos" else f"{architecture}-linux-gnu"
    return [sys.executable, "-m", "ziglang", "cc", "-target", machine]


def _ndk_compiler(architecture: str) -> str:
    ndk = os.environ.get("ANDROID_NDK")
    if not ndk:
        raise UserError("A .so for Android needs the NDK; set ANDROID_NDK to its folder, or write object files (.tar).")
    found = sorted(Path(ndk).glob(f"toolchains/llvm/prebuilt/*/bin/{architecture}-linux-android{ANDROID_API}-clang++"))
    if not found:
        raise UserError(
            f"There is no compiler for {architecture} in ANDROID_NDK={ndk}; set it to the NDK's own folder."
        )
    return str(found[0])


def _linker(command: list[str], system: str = "linux") -> Linker:
    def link(output: str, objects: list[str]) -> None:
        flags = ["-shared", "-o", output]
        if system == "macos":
            flags += ["-Wl,-undefined,dynamic_lookup", f"-Wl,-install_name,@rpath/{Path(output).name}"]
        result = subprocess.run([*command, *flags, *objects], capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(f"Compilation error:\n{result.stderr or result.stdout or 'no message'}")

    return link

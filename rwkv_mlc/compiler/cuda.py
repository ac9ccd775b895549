"""Compiles CUDA source to a fatbin: machine code for several architectures, and PTX for later ones. It needs no GPU."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Protocol

from ..errors import UserError

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
PTX = "compute_90"  # GPUs that no machine code above fits are newer than this
TENSOR_CORE, USES_IT = Path(__file__).with_name("tensor_core.cuh"), (b" multiply_matrices(", b" async_copy(")

INSTALL = "pip install 'rwkv_mlc[cuda]'"


class Compiler(Protocol):
    """A compiler makes code for one architecture at a time, machine code for ``sm_*`` and PTX for ``compute_*``, and
    packs many into a fatbin."""

    def compile(self, source: bytes, architecture: str) -> bytes: ...

    def pack(self, codes: dict[str, bytes]) -> bytes: ...


def images(architectures: Sequence[str]) -> list[str]:
    """List what goes into a fatbin: machine code for every architecture, and PTX."""
    ptx = PTX if len(architectures) > 1 else architectures[0].replace("sm_", "compute_")
    return [*architectures, ptx]


def find_compiler(architectures: Sequence[str]) -> Compiler:
    """Find nvcc where it knows all the architectures, else NVRTC. Raises UserError where neither knows them all."""
    found = []
    for make in (_nvcc, _nvrtc):
        compiler, known = make()
        unknown = [name for name in architectures if name not in known]
        if compiler is not None and not unknown:
            return compiler
        if compiler is not None:
            found.append(f"{compiler.name} does not know {', '.join(unknown)}")
    if found:
        raise UserError(
            f"Compiling for CUDA is not possible ({'; '.join(found)}); check -arch, or install a newer CUDA."
        )
    raise UserError(f"Compiling for CUDA needs NVRTC or nvcc; install the former with {INSTALL}.")


def compile_fatbin(
    source: bytes, architectures: Sequence[str], progress: Callable[[int, int, str], None] | None = None
) -> bytes:
    """Compile CUDA C++ for all architectures at once; ``progress`` is called with (how many are done, of how many, the
    last one). Returns the fatbin.

    Raises UserError where there is no compiler, and RuntimeError with the compiler's message where it fails."""
    compiler, wanted, codes = find_compiler(architectures), images(architectures), {}
    source = (TENSOR_CORE.read_bytes() if any(name in source for name in USES_IT) else b"") + source
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = {pool.submit(compiler.compile, source, image): image for image in wanted}
        for job in as_completed(jobs):
            codes[jobs[job]] = job.result()
            if progress is not None:
                progress(len(codes), len(wanted), jobs[job])
    return compiler.pack({image: codes[image] for image in wanted})


class Nvcc:
    name = "nvcc"

    def __init__(self, path: str):
        self.path, self.fatbinary = path, str(Path(path).with_name("fatbinary"))

    def compile(self, source: bytes, architecture: str) -> bytes:
        form = "cubin" if architecture.startswith("sm_") else "ptx"
        with tempfile.TemporaryDirectory() as folder:
            given, written = Path(folder, "kernels.cu"), Path(folder, f"kernels.{form}")
            given.write_bytes(source)
            _run([self.path, f"--{form}", "-std=c++17", "-w", f"-arch={architecture}", "-o", str(written), str(given)])
            return written.read_bytes()

    def pack(self, codes: dict[str, bytes]) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            written, options = Path(folder, "kernels.fatbin"), []
            for image, code in codes.items():
                kind = "elf" if image.startswith("sm_") else "ptx"
                file = Path(folder, image)
                file.write_bytes(code)
                options.append(f"--image3=kind={kind},sm={_number(image)},file={file}")
            _run([self.fatbinary, f"--create={written}", "-64", *options])
            return written.read_bytes()


class Nvrtc:
    name = "NVRTC"

    def compile(self, source: bytes, architecture: str) -> bytes:
        from cuda.bindings import nvrtc

        program = _checked(nvrtc.nvrtcCreateProgram(source, b"kernels.cu", 0, [], []))
        includes = [f"-I{folder}".encode() for folder in _headers()]
        options = [f"-arch={architecture}".encode(), b"-std=c++17", b"-default-device", b"-w", *includes]
        status, *_ = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if status:
            log = bytes(_checked(nvrtc.nvrtcGetProgramLogSize(program)))
            nvrtc.nvrtcGetProgramLog(program, log)
            raise RuntimeError(f"NVRTC: {log.decode(errors='replace')}")
        machine_code = architecture.startswith("sm_")
        size = nvrtc.nvrtcGetCUBINSize if machine_code else nvrtc.nvrtcGetPTXSize
        code = bytes(_checked(size(program)))
        _checked((nvrtc.nvrtcGetCUBIN if machine_code else nvrtc.nvrtcGetPTX)(program, code))
        _checked(nvrtc.nvrtcDestroyProgram(program))
        return code

    def pack(self, codes: dict[str, bytes]) -> bytes:
        from cuda.bindings import nvfatbin

        handle = nvfatbin.create([], 0)
        for image, code in codes.items():
            if image.startswith("sm_"):
                nvfatbin.add_cubin(handle, code, len(code), _number(image), image)
            else:
                nvfatbin.add_ptx(handle, code, len(code), _number(image), image, "")
        fatbin = bytearray(nvfatbin.size(handle))
        nvfatbin.get(handle, fatbin)
        nvfatbin.destroy(handle)
        return bytes(fatbin)


@functools.cache
def _nvcc() -> tuple[Nvcc | None, set[str]]:
    path = shutil.which("nvcc")
    if path is None or shutil.which("fatbinary", path=str(Path(path).parent)) is None:
        return None, set()
    known = subprocess.run([path, "--list-gpu-code"], capture_output=True, text=True)
    return Nvcc(path), set(known.stdout.split())


@functools.cache
def _nvrtc() -> tuple[Nvrtc | None, set[str]]:
    """Find NVRTC and the architectures that it knows; None where any part of the extra is missing."""
    try:
        from cuda.bindings import nvfatbin, nvrtc

        nvfatbin.version()
        known = _checked(nvrtc.nvrtcGetSupportedArchs())
    except (ImportError, RuntimeError):
        return None, set()
    return (Nvrtc() if _headers() else None), {f"sm_{number}" for number in known}


def _headers() -> list[str]:
    """Find the folders that TVM's source includes from; the list is empty where one is missing."""
    from cuda.pathfinder import find_nvidia_header_directory

    folders = [find_nvidia_header_directory(name) for name in ("cudart", "cccl")]
    return folders if all(folders) else []


def _number(image: str) -> str:
    return image.rpartition("_")[2]


def _checked(result: tuple):
    """Return what a call of cuda-bindings gives after its status. Raises RuntimeError where that is an error."""
    status, *values = result
    if status:
        raise RuntimeError(f"NVRTC: {status.name}")
    return values[0] if values else None


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{Path(command[0]).name}: {result.stderr or result.stdout}")

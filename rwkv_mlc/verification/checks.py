"""What can be checked of a library without its device, and with it where it is here.

A check returns what it found. It raises ``Failed`` with what is wrong, or ``Skipped`` with what this machine lacks.
"""

from __future__ import annotations

import ctypes
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from ..artifact import Artifact
from ..errors import UserError
from ..escaping import listed
from ..library_format import ALL, KernelModule
from ..machine.cpu_features import host_architecture
from .fatbin import read_fatbin, read_resources
from .library import BLOB, CONTEXT, FUNCTION, Library, enum_name
from .macho import count_page_hashes
from .run import Failed, Skipped, run_apart
from .sources import find_clang, parse_sources, validate_spirv

OLDEST_MACOS = (11, 0, 0)
LOADER = {"dyld_stub_binder"}  # what macOS itself adds
SHARED_MEMORY = 48 << 10  # bytes that a block gets of every GPU without asking for more
SPILLS = 32  # bytes a thread that the assembler may park in memory, as it likes to do with what no loop uses


@dataclass(frozen=True)
class Outcome:
    """What came of one check; ``detail`` is what it found, what is wrong, or why it could not be done."""

    check: str
    status: Literal["passed", "failed", "skipped"]
    detail: str


def run_checks(
    library: Library, artifact: Artifact | None = None, target: str | None = None, run: bool = False
) -> list[Outcome]:
    """Every check that is made for the library's format and kernels. Nothing of it is executed, unless ``run`` asks that the
    library for ``target`` of an ``artifact`` be run where its device is here, in a process of its own."""
    outcomes = []
    for name, check in _checks(library, artifact, target, run):
        try:
            outcomes.append(Outcome(name, "passed", check()))
        except Skipped as reason:
            outcomes.append(Outcome(name, "skipped", str(reason)))
        except (Failed, UserError, ValueError, RuntimeError) as error:  # damaged data, and what a device complains of
            outcomes.append(Outcome(name, "failed", str(error).partition("\n")[0]))
    return outcomes


def _checks(
    library: Library, artifact: Artifact | None, target: str | None, run: bool
) -> Iterator[tuple[str, Callable[[], str]]]:
    if artifact is not None:
        yield "checksum", lambda: f"SHA-256 {artifact.library(target).sha256[:12]} as in the build record"
    yield "symbols", lambda: check_symbols(library)
    if library.format == "Mach-O":
        yield "Mach-O header", lambda: check_macho_header(library)
        yield "signature", lambda: check_signature(library)
    if library.kind is not None:
        yield "kernels", lambda: check_kernels(library)
    if library.kind == "cuda":
        yield "machine code", lambda: check_machine_code(library)
        yield "resources", lambda: check_resources(library)
    if library.kind == "vulkan":
        yield "spirv-val", lambda: check_spirv(library)
    if library.kind in ("metal", "opencl"):
        yield "clang", lambda: check_source(library)
    yield "run", lambda: check_run(library, artifact) if run else _not_run()


def check_symbols(library: Library) -> str:
    """Exports what TVM looks for, under the prefix of a system library; imports what TVM's runtime or C offers."""
    own = [name for name in library.exports if FUNCTION in name and not name.endswith((BLOB, CONTEXT))]
    if library.kind is not None and library.prefix + CONTEXT not in library.exports:
        raise Failed(f"{library.prefix + CONTEXT} is missing, through which it finds its kernels")
    if (library.format == "ELF objects") != bool(library.prefix):
        raise Failed(f"{library.format} with the prefix {library.prefix!r}")
    stray = [name for name in own if not name.startswith(FUNCTION + library.prefix)]
    if stray:
        raise Failed(f"{listed(stray)} lies outside the prefix {library.prefix}")
    process = _process_with_runtime()
    unknown = [name for name in library.imports if name not in LOADER and not hasattr(process, name)]
    if unknown:
        raise Failed(f"{listed(unknown)} is imported, which neither TVM's runtime nor C has")
    prefix = f" under the prefix {library.prefix}" if library.prefix else ""
    return f"{_count(len(own), 'function')}{prefix}; TVM's runtime and C have all that is imported"


def _process_with_runtime() -> ctypes.CDLL:
    from ..engine import tvm_runtime  # noqa: F401  loads it

    return ctypes.CDLL(None)


def check_macho_header(library: Library) -> str:
    (binary,) = library.binaries
    names = [item.name for item in binary.libraries if enum_name(item.command) == "ID_DYLIB"]
    file_type, version = enum_name(binary.header.file_type), binary.build_version
    if file_type != "DYLIB":
        raise Failed(f"file type {file_type}, not DYLIB")
    if names != [f"@rpath/{library.path.name}"]:
        raise Failed(f"install name {names}, not @rpath/{library.path.name}")
    if version is None:
        raise Failed("it does not say for which system it is")
    platform, minimum = enum_name(version.platform), tuple(version.minos)
    if platform != "MACOS" or minimum > OLDEST_MACOS:
        raise Failed(f"for {platform} {minimum}, not macOS {OLDEST_MACOS[0]}")
    return f"{library.architecture} dylib {names[0]} for macOS {'.'.join(map(str, minimum[:2]))}"


def check_signature(library: Library) -> str:
    return f"ad hoc, the hashes of {_count(count_page_hashes(library.path, library.binaries[0]), 'page')} agree"


def check_kernels(library: Library) -> str:
    """Every kernel has its code, in a form that the device's driver takes."""
    modules = library.kernel_modules()
    for module in modules:
        if library.kind == "cuda" and module.format not in ("fatbin", "cubin"):
            raise Failed(f"{module.format} source instead of machine code")
        without = [name for name in module.names if name not in module.code and ALL not in module.code]
        if without or not all(module.code.values()):
            raise Failed(f"{listed(without) or 'a kernel'} without code")
    formats, count = {module.format for module in modules}, sum(len(module.names) for module in modules)
    return f"{_count(count, 'kernel')} as {', '.join(sorted(formats))}"


def check_machine_code(library: Library) -> str:
    """Every architecture's machine code has every kernel."""
    found = []
    for module in library.kernel_modules():
        for image in read_fatbin(module.code[ALL]):
            found.append(image.architecture)
            missing = set(module.names) - set(read_resources(image.code)) if image.is_machine_code else set()
            if missing:
                raise Failed(f"{image.architecture} lacks {listed(sorted(missing))}")
    return ", ".join(found)


def check_resources(library: Library) -> str:
    """Shared memory within what every GPU gives, and next to nothing that lives in memory for want of registers."""
    taken = {
        (image.architecture, kernel): resources
        for module in library.kernel_modules()
        for image in read_fatbin(module.code[ALL])
        if image.is_machine_code
        for kernel, resources in read_resources(image.code).items()
    }
    if not taken:
        raise Failed("no machine code")
    for (architecture, kernel), resources in taken.items():
        if resources.shared > SHARED_MEMORY:
            raise Failed(f"{kernel} takes {resources.shared} bytes of shared memory on {architecture}")
        if resources.stack > SPILLS:
            raise Failed(f"{kernel} takes {resources.stack} bytes of stack a thread on {architecture}: registers spill")
    fields = ("registers", "stack", "shared")
    registers, stack, shared = (max(getattr(resources, field) for resources in taken.values()) for field in fields)
    return f"at most {registers} registers and {stack} bytes of stack a thread, {shared} of shared memory a block"


def check_spirv(library: Library) -> str:
    if shutil.which("spirv-val") is None:
        raise Skipped("spirv-val is not installed (Debian: spirv-tools)")
    shaders = {}
    for module in library.kernel_modules():
        shaders |= {name: shader_words(shader) for name, shader in module.code.items()}
    if message := validate_spirv(shaders):
        raise Failed(message)
    return f"{_count(len(shaders), 'shader')} valid for Vulkan 1.1"


def shader_words(shader: bytes) -> bytes:
    """SPIR-V out of what TVM keeps of a shader: u32 flags | u64 number of words | words."""
    return shader[12:]


def check_source(library: Library) -> str:
    clang = find_clang()
    if clang is None:
        raise Skipped("clang is not installed")
    modules: list[KernelModule] = library.kernel_modules()
    for module in modules:
        if message := parse_sources(clang, module.format, module.code):
            raise Failed(message)
    stub = ", with a stub of Apple's header" if library.kind == "metal" else ""
    return f"{_count(sum(len(module.names) for module in modules), 'kernel')} parsed as {modules[0].format}{stub}"


def _not_run() -> str:
    raise Skipped("a library is code, which runs with your rights: --run runs it")


def check_run(library: Library, artifact: Artifact | None) -> str:
    """A prompt read at once and token by token gives finite and equal logits, in a process of its own."""
    system = "Mach-O" if sys.platform == "darwin" else "ELF"
    if (library.format, library.architecture) != (system, host_architecture()):
        raise Skipped(f"{library.format} for {library.architecture}, not for this machine")
    if artifact is None:
        raise Skipped("it lies in no artifact, whose weights a run would need")
    return run_apart(artifact.path, library.kind or "cpu")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"

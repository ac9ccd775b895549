"""Libraries for devices that this machine does not have: what is in them, and what ``verify`` finds when it is wrong."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import lief
import numpy as np
import pytest
import tvm
from filelock import FileLock
from tvm import relax, tirx

from rwkv_mlc import Engine
from rwkv_mlc.artifact import Artifact
from rwkv_mlc.artifact.names import system_lib_prefix
from rwkv_mlc.cli.main import main
from rwkv_mlc.compiler import cuda
from rwkv_mlc.compiler.link import check_tools, export_library, find_linker
from rwkv_mlc.compiler.pipeline import compile_module
from rwkv_mlc.compiler.targets import resolve_target
from rwkv_mlc.errors import UserError
from rwkv_mlc.library_format import ALL, KernelModule, read_modules, rewrite_modules
from rwkv_mlc.machine.cpu_features import host_architecture
from rwkv_mlc.verification.checks import run_checks
from rwkv_mlc.verification.fatbin import Resources, read_fatbin, read_resources
from rwkv_mlc.verification.library import Library
from support.aarch64 import RemoteRunner
from tir_kernels.cpu.wkv5 import wkv5 as wkv5_on_cpu
from tir_kernels.gpu.wkv4 import wkv4
from tir_kernels.gpu.wkv5 import wkv5

ONE_ARCHITECTURE = "cuda -arch=sm_80"
GPUS = [ONE_ARCHITECTURE, "metal", "vulkan", "opencl", "android"]
HEADS, SIZE, CHANNELS = 2, 32, 64
PREFIX = "tiny_q0f16_"
KERNELS = {"wkv4_kernel", "wkv5_kernel"}

# Spills what it indexes and does not know: 200 floats a thread. 2048 floats are shared.
SPILLING = b"""
extern "C" __global__ void __launch_bounds__(128) spilling(float* x, int n) {
  __shared__ float shared[2048];
  float own[200];
  for (int i = 0; i < 200; ++i) own[i] = x[i * 128 + threadIdx.x];
  for (int i = 0; i < n; ++i) shared[(threadIdx.x + i) % 2048] = own[(i * n) % 200];
  __syncthreads();
  x[threadIdx.x] = shared[n];
}
"""


def small_module(prefix: str = "") -> tvm.IRModule:
    """Both wkv kernels in the form for GPUs, behind Relax functions of symbolic lengths."""
    builder = relax.BlockBuilder()
    batch, rows = tirx.Var("batch", "int64"), tirx.Var("rows", "int64")

    def emit(name: str, kernel: tirx.PrimFunc, shapes: list[list], outputs: list[list]) -> None:
        arguments = [relax.Var(f"x{i}", relax.TensorType(shape, "float32")) for i, shape in enumerate(shapes)]
        arguments.append(relax.Var("segment_ends", relax.TensorType([batch], "int32")))
        types = [relax.TensorType(shape, "float32") for shape in outputs]
        function = builder.add_func(kernel, name)
        with builder.function(f"run_{name}", arguments):
            builder.emit_func_output(builder.emit(relax.call_tir(function, arguments, types)))

    row, state = [1, rows, CHANNELS], [batch, HEADS, SIZE, SIZE]
    emit("wkv5", wkv5(HEADS, SIZE), [row] * 3 + [[HEADS, SIZE]] * 2 + [state], [row, state])
    states = [[batch, CHANNELS]] * 3
    emit("wkv4", wkv4(CHANNELS), [row] * 3 + [[CHANNELS]] * 2 + states, [row, *states])
    module = builder.finalize()
    return module.with_attr("system_lib_prefix", prefix) if prefix else module


@pytest.fixture(scope="session")
def small(libraries) -> Callable[[str], Path]:
    """The library of ``small_module`` for a target, one build a test run; skips where a tool is missing."""

    def build(text: str) -> Path:
        target = resolve_target(text)
        try:
            check_tools(target, target.suffix)
        except UserError as reason:
            pytest.skip(str(reason))
        path = libraries / f"small-{re.sub(r'[^a-z0-9]+', '-', text)}{target.suffix}"
        with FileLock(f"{path}.lock"):
            if not path.exists():
                module = small_module(PREFIX if target.suffix == ".tar" else "")
                export_library(compile_module(module, target), target, path)
        return path

    return build


def outcomes(path: Path) -> dict[str, tuple[str, str]]:
    return {outcome.check: (outcome.status, outcome.detail) for outcome in run_checks(Library.open(path))}


def failures(path: Path) -> dict[str, str]:
    return {check: detail for check, (status, detail) in outcomes(path).items() if status == "failed"}


def patched(path: Path, folder: Path, before: bytes, after: bytes) -> Path:
    """A copy of a library with the first of some bytes replaced by others."""
    data = path.read_bytes()
    assert before in data and len(before) == len(after)
    copy = folder / path.name
    copy.write_bytes(data.replace(before, after, 1))
    return copy


# What is inside


@pytest.mark.parametrize("text", GPUS)
def test_a_library_for_every_gpu(small, text):
    path = small(text)
    library, target = Library.open(path), resolve_target(text)
    (kernels,) = library.kernel_modules()
    prefix = PREFIX if target.suffix == ".tar" else ""
    assert set(kernels.names) == {prefix + name for name in KERNELS}
    assert {"wkv4", "wkv5"} <= set(library.functions)
    assert library.prefix == prefix
    assert (library.kind, library.format) == {
        "cuda": ("cuda", "ELF"),
        "metal": ("metal", "Mach-O"),
        "vulkan": ("vulkan", "ELF"),
        "opencl": ("opencl", "ELF"),
        "android": ("opencl", "ELF objects"),
    }[target.name]
    assert library.architecture == ("aarch64" if target.name in ("metal", "android") else host_architecture())
    assert failures(path) == {}


@pytest.mark.parametrize("text", GPUS)
def test_the_modules_come_back_as_they_were(small, text):
    """Every byte of them is read and understood: writing them again gives the same."""
    modules = Library.open(small(text)).modules
    for module in Library.open(small(text)).kernel_modules():
        assert module.serialize() in [module.data for module in modules]


def test_opencl_declares_no_kernel_twice(small):
    (kernels,) = Library.open(small("opencl")).kernel_modules()
    assert kernels.code[ALL].count(b"__kernel void ") == len(kernels.names)


def test_a_damaged_blob_is_no_library():
    target = resolve_target("opencl")
    executable = compile_module(small_module(), target)
    blob = tvm.get_global_func("runtime.ModulePackImportsToTensor")(executable.mod).numpy().tobytes()
    assert [module.kind for module in read_modules(blob)] == ["relax.VMExecutable", "_lib", "opencl"]
    assert rewrite_modules(blob, lambda module: module) == blob
    for size in (0, 7, 30, 100, len(blob) - 1):
        with pytest.raises(ValueError):
            read_modules(blob[:size])
    data = read_modules(blob)[-1].data
    for damaged in (data[:-1], data + b"\0", data[8:]):
        with pytest.raises(ValueError):
            KernelModule.parse(damaged)


# CUDA


@pytest.fixture(params=["nvcc", "NVRTC"])
def cuda_compiler(request, monkeypatch):
    """Each of the two as the only one."""
    make = {"nvcc": cuda._nvcc, "NVRTC": cuda._nvrtc}[request.param]
    if make()[0] is None:
        pytest.skip(f"{request.param} is not installed")
    monkeypatch.setattr(cuda, "find_compiler", lambda _: make()[0])
    return make()[0]


def test_machine_code_for_every_architecture(cuda_compiler, tmp_path):
    target, path, steps = resolve_target("cuda"), tmp_path / "small.so", []
    export_library(compile_module(small_module(), target), target, path, lambda *step: steps.append(step))
    (module,) = Library.open(path).kernel_modules()
    images = read_fatbin(module.code[ALL])
    assert [image.architecture for image in images] == [*cuda.ARCHITECTURES, cuda.PTX]
    for image in images[:-1]:
        resources = read_resources(image.code)
        assert set(resources) == KERNELS
        assert all(0 < r.registers <= 255 and r.stack == 0 for r in resources.values())
        shared = {name: r.shared for name, r in resources.items() if r.shared}
        assert shared and all(name.startswith("wkv5") and size <= 8192 for name, size in shared.items())
    assert [step[:2] for step in steps] == [(i + 1, len(images)) for i in range(len(images))]
    assert {step[2] for step in steps} == {image.architecture for image in images}
    assert failures(path) == {}
    assert b"__launch_bounds__" not in path.read_bytes()


def test_spills_and_shared_memory_are_seen(cuda_compiler):
    for architecture in ("sm_75", "sm_90", "sm_120"):
        found = read_resources(cuda_compiler.compile(SPILLING, architecture))["spilling"]
        assert (found.stack, found.shared) == (800, 8192)


def test_resources_are_those_that_nvcc_reports(tmp_path):
    compiler = cuda._nvcc()[0]
    if compiler is None:
        pytest.skip("nvcc is not installed")
    source = tmp_path / "spilling.cu"
    source.write_bytes(SPILLING)
    command = [compiler.path, "-cubin", "-arch=sm_86", "--resource-usage", "-o", tmp_path / "cubin", source]
    report = subprocess.run(command, capture_output=True, text=True, check=True)
    stack, registers, shared = (
        int(re.search(pattern, report.stdout + report.stderr)[1])
        for pattern in (r"(\d+) bytes stack frame", r"Used (\d+) registers", r"(\d+) bytes smem")
    )
    found = read_resources((tmp_path / "cubin").read_bytes())["spilling"]
    assert found == Resources(registers, stack, shared)


def test_verify_fails_on_spills(small, tmp_path, monkeypatch):
    path = small(ONE_ARCHITECTURE)
    compiler, kernels = cuda.find_compiler(["sm_80"]), Library.open(path).kernel_modules()[0]
    fatbin = compiler.pack({"sm_80": compiler.compile(SPILLING, "sm_80")})
    monkeypatch.setattr(cuda, "compile_fatbin", lambda *_: fatbin)
    spilling, target = tmp_path / "small.so", resolve_target(ONE_ARCHITECTURE)
    export_library(compile_module(small_module(), target), target, spilling)
    found = failures(spilling)
    assert set(found) == {"machine code", "resources"}
    assert found["machine code"] == f"sm_80 lacks {', '.join(sorted(kernels.names))}"
    assert "spilling takes 800 bytes of stack a thread on sm_80" in found["resources"]


def test_verify_fails_on_bare_source(tmp_path):
    """What TVM itself writes where there is no GPU."""
    path = tmp_path / "source.so"
    compile_module(small_module(), resolve_target(ONE_ARCHITECTURE)).export_library(str(path))
    assert failures(path)["kernels"] == "cuda source instead of machine code"


def test_compiling_for_cuda_needs_a_compiler(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    for cached in (cuda._nvcc, cuda._nvrtc):
        monkeypatch.setattr(cuda, cached.__name__, cached.__wrapped__)
    with pytest.raises(UserError, match=r"needs NVRTC or nvcc; install the former with pip install 'rwkv_mlc\[cuda\]'"):
        cuda.find_compiler(cuda.ARCHITECTURES)


def test_an_architecture_that_no_compiler_knows(cuda_compiler, monkeypatch):
    monkeypatch.undo()
    with pytest.raises(UserError, match=f"{cuda_compiler.name} does not know sm_35"):
        check_tools(resolve_target("cuda -arch=sm_35"), ".so")


# Metal


def test_a_changed_page_breaks_the_signature(small, tmp_path):
    changed = patched(small("metal"), tmp_path, b"VMExecutable", b"VMexecutable")
    assert "the hash of page" in failures(changed)["signature"]


def test_a_renamed_dylib_has_another_install_name(small, tmp_path):
    renamed = tmp_path / "renamed.dylib"
    renamed.write_bytes(small("metal").read_bytes())
    assert failures(renamed) == {"Mach-O header": "install name ['@rpath/small-metal.dylib'], not @rpath/renamed.dylib"}


def test_the_cpu_of_a_mac(tmp_path):
    target, path = resolve_target("llvm -mtriple=arm64-apple-macos12.0 -mcpu=apple-m1"), tmp_path / "cpu.dylib"
    try:
        linker = find_linker(target, target.suffix)
    except UserError as reason:
        pytest.skip(str(reason))
    kernel = wkv5_on_cpu(HEADS, SIZE).with_attr("global_symbol", "wkv5")
    tvm.compile(tvm.IRModule({"wkv5": kernel}), target=target.tvm).export_library(str(path), fcompile=linker)
    binary = lief.MachO.parse(path).take(lief.MachO.Header.CPU_TYPE.ARM64)
    assert binary.build_version.minos == [12, 0, 0]
    assert binary.has_code_signature and "___tvm_ffi_wkv5" in [symbol.name for symbol in binary.exported_symbols]


# Sources and shaders


@pytest.mark.parametrize(
    ("text", "before", "after", "check", "message"),
    [
        ("metal", b"kernel void wkv5", b"kernel viod wkv5", "clang", "wkv5_kernel:"),
        ("opencl", b"__kernel void wkv5", b"__kernel viod wkv5", "clang", "source:"),
        ("vulkan", b"\x03\x02\x23\x07", b"\x03\x02\x23\x08", "spirv-val", "Invalid SPIR-V magic number"),
    ],
)
def test_broken_kernels_are_found(small, tmp_path, text, before, after, check, message):
    path = small(text)
    status, reason = outcomes(path)[check]
    if status == "skipped":
        pytest.skip(reason)
    assert message in failures(patched(path, tmp_path, before, after))[check]


def test_nothing_may_be_written_to_constant_memory(small, tmp_path):
    path = small("metal")
    status, reason = outcomes(path)["clang"]
    if status == "skipped":
        pytest.skip(reason)
    changed = patched(path, tmp_path, b"  device float* out_ptr", b"constant float* out_ptr")
    assert failures(changed)["clang"].endswith("error: read-only variable is not assignable")


# Android


def test_objects_for_android_keep_to_their_prefix(small, tmp_path):
    path = small("android")
    with tarfile.open(path) as archive:
        assert sorted(archive.getnames()) == ["lib0.o", f"{PREFIX}devc.o"]
    exports = Library.open(path).exports
    assert f"{PREFIX}__tvm_ffi__library_bin" in exports and f"{PREFIX}__tvm_ffi__library_ctx" in exports
    target, stray = resolve_target("android"), tmp_path / "stray.tar"
    export_library(compile_module(small_module(), target), target, stray)
    assert failures(stray) == {"symbols": "ELF objects with the prefix ''"}


def test_a_shared_library_for_android_needs_the_ndk(monkeypatch, tmp_path):
    monkeypatch.delenv("ANDROID_NDK", raising=False)
    target = resolve_target("android")
    assert target.suffix == ".tar"
    with pytest.raises(UserError, match="set ANDROID_NDK to its folder"):
        check_tools(target, ".so")
    monkeypatch.setenv("ANDROID_NDK", str(tmp_path))
    target = resolve_target("android")
    assert target.suffix == ".so"
    with pytest.raises(UserError, match="There is no compiler for aarch64 in ANDROID_NDK="):
        check_tools(target, ".so")
    check_tools(target, ".tar")


# The command


def test_verify_prints_and_judges(small, tmp_path, capsys):
    path = small("metal")
    assert main(["verify", str(path)]) == 0
    printed = capsys.readouterr().out
    for expected in ("Mach-O for aarch64", "2 of metal", "wkv5_kernel", "Mach-O header", "passed", "skipped"):
        assert expected in printed
    changed = patched(path, tmp_path, b"VMExecutable", b"VMexecutable")
    assert main(["verify", str(changed), "--json"]) == 1
    (report,) = json.loads(capsys.readouterr().out)
    assert {kernel["name"] for kernel in report["kernels"]} == KERNELS
    assert report["bytes"] == changed.stat().st_size
    assert [check["check"] for check in report["checks"] if check["status"] == "failed"] == ["signature"]


def test_verify_lists_what_kernels_take(small, capsys):
    assert main(["verify", str(small(ONE_ARCHITECTURE)), "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert report["architectures"] == ["sm_80", "compute_80"]
    for kernel in report["kernels"]:
        assert kernel["resources"]["sm_80"]["stack"] == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.so", None, "name an artifact's folder or a library"),
        ("text.so", b"text", "is no ELF or Mach-O library"),
        ("text.tar", b"text", "cannot be read"),
        ("empty.so", b"", "is no ELF or Mach-O library"),
    ],
)
def test_verify_refuses_what_is_no_library(tmp_path, capsys, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert main(["verify", str(tmp_path / name)]) == 2
    assert message in capsys.readouterr().err


def test_verify_without_lief(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lief", None)
    for name in [name for name in sys.modules if name.startswith("rwkv_mlc.verification")]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "library.so").touch()
    for name, message in (
        (
            "library.so",
            "verify reads libraries with lief, which is not installed; install it with pip install 'rwkv_mlc[verify]'.",
        ),
        ("nowhere", f"There is no {tmp_path}/nowhere; name an artifact's folder or a library."),
    ):
        assert main(["verify", str(tmp_path / name)]) == 2
        assert capsys.readouterr().err == f"error: {message}\n"


@pytest.mark.parametrize("target", ["metal", "android", ONE_ARCHITECTURE])
def test_verify_says_what_is_cut(small, tmp_path, capsys, target):
    path = small(target)
    cut = tmp_path / f"cut{path.suffix}"
    for size in (100, 5000, path.stat().st_size // 2, path.stat().st_size - 1):
        cut.write_bytes(path.read_bytes()[:size])
        assert main(["verify", str(cut)]) == 2
        assert "cut cannot be read (it is cut" in capsys.readouterr().err.replace(path.suffix, "")


def test_verify_refuses_another_shared_library(capsys):
    other = Path(tvm.__file__).parent / "lib" / "libtvm_runtime_extra.so"
    if not other.exists():
        pytest.skip("this TVM has no shared library of that name")
    assert main(["verify", str(other)]) == 2
    assert "holds no __tvm_ffi__library_bin" in capsys.readouterr().err


def test_verify_runs_an_artifact_of_this_cpu(demo, tmp_path, capsys):
    assert main(["verify", str(demo), "--run", "--json"]) == 0
    reports = {report["target"]: report for report in json.loads(capsys.readouterr().out)}
    checks = {check["check"]: check["status"] for check in reports["llvm"]["checks"]}
    assert checks == {"checksum": "passed", "symbols": "passed", "run": "passed"}
    assert main(["verify", reports["llvm"]["file"], "--run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [reports["llvm"]]
    folder = tmp_path / demo.name
    shutil.copytree(demo, folder)
    library = Artifact.open(folder).library("llvm").path
    whole = library.read_bytes()
    library.write_bytes(whole + b" ")
    assert main(["verify", str(folder)]) == 1
    assert "is damaged: its checksum differs" in capsys.readouterr().out
    library.write_bytes(whole[:1000])
    assert main(["verify", str(folder)]) == 2
    assert "is damaged: its checksum differs; run rwkv-mlc compile" in capsys.readouterr().err


def test_objects_for_the_cpu_of_a_phone_compute(demo, aarch64, tmp_path, monkeypatch):
    """Linked for another C library and run under qemu, they give the logits that this CPU gives."""
    folder = tmp_path / demo.name
    shutil.copytree(demo, folder)
    assert main(["compile", str(folder), "--target", "android-cpu"]) == 0
    artifact = Artifact.open(folder)
    path, prefix = artifact.library("android-cpu").path, system_lib_prefix(artifact.record.name)
    assert path.name == f"{demo.name}-android-cpu.tar"
    assert failures(path) == {} and Library.open(path).prefix == prefix
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path / "objects", filter="data")
    linked = tmp_path / "linked.so"
    objects = [str(file) for file in (tmp_path / "objects").iterdir()]
    find_linker(resolve_target("llvm -mtriple=aarch64-linux-gnu"), ".so")(str(linked), objects)
    loaded = [aarch64.load(linked), aarch64.session.get_function("ffi.SystemLib")(prefix)]
    monkeypatch.setattr(aarch64, "load", lambda _: loaded[1])
    remote, tokens = RemoteRunner(aarch64, linked, artifact.parameters()), list(range(1, 13))
    logits = remote.run("prefill", [tokens], remote.new_state())
    engine = Engine(demo, "cpu")
    expected = engine.prefill(tokens, engine.new_state())
    assert np.abs(logits[0] - expected).max() < 1e-3 * np.abs(expected).max()

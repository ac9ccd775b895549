"""An aarch64 machine: qemu runs TVM's own runtime for it, and TVM's RPC brings libraries and arrays there."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import tvm
from filelock import FileLock
from tvm import rpc
from tvm.contrib import tvmjs
from tvm.tirx import PrimFunc

from rwkv_mlc.compiler.link import find_linker
from rwkv_mlc.compiler.pipeline import lowering
from rwkv_mlc.compiler.targets import resolve_target
from rwkv_mlc.engine.runner import Runner
from rwkv_mlc.engine.tvm_runtime import POOLED_ALLOCATOR
from rwkv_mlc.machine.cpu_features import host_architecture
from rwkv_mlc.quantization.layouts import LAYOUTS
from rwkv_mlc.schema import LibraryMetadata

TARGET = "llvm -mtriple=aarch64-linux-gnu"
SERVER = Path(__file__).with_name("aarch64_server.c")
CPU = 1  # as DLPack numbers devices
COMPILER = "aarch64-linux-gnu-g++"
SYSTEM = Path("/usr/aarch64-linux-gnu")  # where Debian puts the C and C++ libraries
RUNTIME = {
    "apache-tvm-ffi": ["tvm_ffi/lib/libtvm_ffi.so"],
    "apache-tvm": ["tvm/lib/libtvm_runtime.so", "tvm/lib/libtvm_runtime_extra.so"],
}


def find_qemu() -> str:
    """Skips the test where there is nothing to run aarch64 code with."""
    if host_architecture() == "aarch64":
        pytest.skip("this machine is an aarch64 itself: the other tests show what there is to show")
    qemu = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if qemu is None or shutil.which(COMPILER) is None:
        pytest.skip("aarch64 code runs where the packages qemu-user-static and g++-aarch64-linux-gnu are installed")
    return qemu


def prepare(folder: Path) -> list[Path]:
    """The server and the libraries that it takes, made once; skips where PyPI is out of reach."""
    server, libraries = folder / "server", [folder / Path(name).name for names in RUNTIME.values() for name in names]
    with FileLock(folder / "lock"):
        for package, names in RUNTIME.items():
            _download(package, names, folder)
        if not server.exists() or server.stat().st_mtime < SERVER.stat().st_mtime:
            subprocess.run([COMPILER, "-x", "c", "-O1", "-o", server, SERVER, "-ldl"], check=True)
    return [server, *libraries]


def _download(package: str, names: list[str], folder: Path) -> None:
    requirement = f"{package}=={version(package)}"
    if (folder / requirement).exists():
        return
    with tempfile.TemporaryDirectory() as wheels:
        platform = ["--platform", "manylinux_2_28_aarch64", "--only-binary", ":all:", "--no-deps"]
        pip = [sys.executable, "-m", "pip", "download", "--quiet", *platform, "--dest", wheels, requirement]
        if subprocess.run(pip, capture_output=True).returncode:
            pytest.skip(f"pip cannot download {requirement} for aarch64")
        (wheel,) = Path(wheels).iterdir()
        with zipfile.ZipFile(wheel) as archive:
            for name in names:
                (folder / Path(name).name).write_bytes(archive.read(name))
    (folder / requirement).touch()


@dataclass(frozen=True)
class RemoteFunction:
    """Called with tensors on ``device``."""

    function: Callable[..., None]
    device: tvm.runtime.Device

    def __call__(self, *tensors: tvm.runtime.Tensor) -> None:
        self.function(*tensors)


class Machine:
    """A process under qemu, which ends with this one. ``cpu`` is one of qemu's names."""

    def __init__(self, folder: Path, cpu: str = "max"):
        qemu = find_qemu()
        command = [qemu, "-cpu", cpu, "-L", SYSTEM, *prepare(folder)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.session = rpc.connect("127.0.0.1", int(self.process.stdout.readline()))
        self.device = self.session.cpu()

    def load(self, library: Path) -> tvm.runtime.Module:
        return self.session.get_function("ffi.ModuleLoadFromFile")(str(library))

    def build(self, functions: Mapping[str, PrimFunc], folder: Path, target: str = TARGET) -> dict[str, RemoteFunction]:
        """All functions, compiled for ``target`` into one library in ``folder``."""
        resolved, path = resolve_target(target), Path(tempfile.mkdtemp(dir=folder)) / "kernels.so"
        module = tvm.IRModule({name: f.with_attr("global_symbol", name) for name, f in functions.items()})
        with lowering():
            built = tvm.compile(module, target=resolved.tvm)
        built.export_library(str(path), fcompile=find_linker(resolved, ".so"))
        library = self.load(path)
        return {name: RemoteFunction(library[name], self.device) for name in functions}

    def tensor(self, array: np.ndarray) -> tvm.runtime.Tensor:
        return tvm.runtime.tensor(np.ascontiguousarray(array), self.device)

    def pack(self, arrays: Iterable[np.ndarray]):
        """One object that holds tensors. RPC passes tensors as views that last for a call, so they go through a file."""
        named = {f"tensor_{i}": np.ascontiguousarray(array) for i, array in enumerate(arrays)}
        call = self.session.get_function
        with tempfile.TemporaryDirectory() as folder:
            with contextlib.redirect_stdout(None):
                tvmjs.dump_tensor_cache(named, folder, encode_format="raw", show_progress=False)
            call("vm.builtin.tensor_cache.load")(folder, CPU, 0)
            tensors = call("vm.builtin.param_array_from_cache")("tensor", len(named))
            call("vm.builtin.tensor_cache.clear")()
        return tensors


class RemoteRunner(Runner):
    """A runner whose virtual machine works on another machine. Its states are tuples there."""

    def __init__(self, machine: Machine, library: Path, parameters: Mapping[str, np.ndarray]):
        self.machine, self.vm = machine, machine.load(library)["vm_load_executable"]()
        self.vm["vm_initialization"](CPU, 0, POOLED_ALLOCATOR)
        self.metadata = LibraryMetadata.read(self.vm["_metadata"](), library)
        self.config, self.initial = self.metadata.config, {}
        self.params = machine.pack(LAYOUTS[p.layout].permute(parameters[p.name]) for p in self.metadata.params)

    def state_from(self, arrays: Iterable[np.ndarray]):
        return self.machine.pack(arrays)

    def run(self, function: str, sequences: Sequence[Sequence[int]], state, slots: Sequence[int] | None = None):
        tokens, ends = np.concatenate(sequences), np.cumsum([len(tokens) for tokens in sequences])
        slots = range(len(sequences)) if slots is None else slots
        inputs = [self.machine.tensor(np.asarray(array, np.int32)) for array in (tokens, ends, slots)]
        return self.vm[function](*inputs, state, self.params).numpy().reshape(-1, self.config.vocab_size)

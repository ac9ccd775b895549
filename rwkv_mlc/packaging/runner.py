"""The program without a model: TVM's runtime from the sources in its wheels, and what talks, in ``rwkv_mlc/native``."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from ..engine.kept_library import kept_library
from ..engine.native import cache_folder
from ..engine.threads import LIBRARY as THREADS
from ..errors import UserError
from .systems import System
from .zig import zig

NATIVE = Path(__file__).parents[1] / "native"
FLAGS = (
    *("-std=c++20", "-O2", "-g0", "-DNDEBUG", "-ffunction-sections", "-fdata-sections", "-ffp-contract=off"),
    *("-DTVM_FFI_CMAKE_LITTLE_ENDIAN=1", "-DTVM_FFI_USE_LIBBACKTRACE=0", "-DTVM_LOG_DEBUG=0"),
)


@dataclass(frozen=True)
class Part:
    """Sources that make one archive of objects. ``packages`` are those whose versions they depend on."""

    name: str
    title: str
    sources: tuple[Path, ...]
    headers: tuple[Path, ...] = ()
    packages: tuple[str, ...] = ("apache-tvm", "apache-tvm-ffi", "ziglang")

    def build(self, system: System) -> Path:
        """The archive for a system, found in the cache where it was built before. Raises UserError where zig fails, and where
        the cache cannot be written."""
        file = f"lib{self.name}.a"
        folder = cache_folder() / f"{self.name}-{system.name}-{self._key()}"
        try:
            return kept_library(folder, file, self.title, lambda scratch: self._compile(system, scratch, file))
        except OSError as error:
            raise UserError(f"{self.title} cannot be written to {folder}: {error}; set XDG_CACHE_HOME.") from None

    def _key(self) -> str:
        digest = hashlib.sha256(" ".join([*map(metadata.version, self.packages), *FLAGS]).encode())
        for path in sorted((*self.sources, *self.headers, *_shims())):
            digest.update(path.read_bytes())
        return digest.hexdigest()[:16]

    def _compile(self, system: System, folder: Path, file: str) -> Path:
        paths = [f"-I{path}" for path in include()]
        objects = [folder / f"{source.stem}.o" for source in self.sources]

        def compile_one(source: Path, target: Path) -> None:
            zig("c++", "-target", system.zig, *FLAGS, *paths, "-c", source, "-o", target)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(compile_one, self.sources, objects):
                pass
        zig("ar", "rcs", folder / file, *objects)
        return folder / file


def runtime() -> Part:
    return Part("rwkv_runtime", "TVM's runtime for packaged programs", tuple(sorted((NATIVE / "runtime").glob("*.cc"))))


def runner() -> Part:
    folder = NATIVE / "runner"
    sources = (*sorted(folder.glob("*.cc")), *THREADS.folder.glob("*.cc"))
    headers = tuple(folder.glob("*.h"))
    return Part("rwkv_runner", "The program that runs packaged models", sources, headers)


def licenses() -> str:
    """Of all that is in a program."""
    texts = []
    for package, names in {
        "apache-tvm": ("LICENSE",),
        "apache-tvm-ffi": ("NOTICE", "LICENSE"),
        "ziglang": ("libc/musl/COPYRIGHT", "libcxx/LICENSE.TXT", "libcxxabi/LICENSE.TXT", "libunwind/LICENSE.TXT"),
    }.items():
        for file in metadata.files(package) or ():
            name = next((name for name in names if str(file).endswith(f"/{name}")), None)
            if name and ".dist-info/" in str(file) and "/wasi/" not in str(file):
                texts.append(f"{package} {metadata.version(package)}, {name}\n\n{file.read_text(encoding='utf-8')}")
    return f"\n{'-' * 80}\n".join(texts)


def include() -> Iterator[Path]:
    """Folders of headers. The last two of ours are where the runtime's own sources look for ``../support``."""
    yield from (NATIVE / "headers", NATIVE / "headers/support", NATIVE / "headers/tvm/support")
    for package in ("tvm", "tvm_ffi"):
        found = importlib.util.find_spec(package)
        assert found and found.origin
        folder = Path(found.origin).parent
        yield from (folder / "include", folder)


def _shims() -> list[Path]:
    return sorted((NATIVE / "headers").rglob("*.h"))

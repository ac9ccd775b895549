"""Libraries of ours in C++, built on the machine that needs them and kept in the user's cache."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from ..errors import UserError
from .kept_library import kept_library


@dataclass(frozen=True)
class NativeLibrary:
    """What ``folder`` holds as C++, as the shared object ``file``.

    ``name`` tells it from others in the cache and ``title`` in messages. ``flags`` are for the compiler, ``linked`` for the
    linker after the objects, ``include`` folders of headers. ``packages`` are those whose versions it depends on. Where it
    ``takes_long``, the user is told that it is built; ``missing`` says for a piece of the compiler's messages what is not
    there."""

    name: str
    title: str
    file: str
    folder: Path
    flags: tuple[str, ...]
    include: tuple[Path | str, ...] = ()
    linked: tuple[Path | str, ...] = ()
    packages: tuple[str, ...] = ()
    takes_long: bool = False
    missing: Mapping[str, str] = field(default_factory=dict)

    def build(self) -> Path:
        """Build it, or find it in the cache where it was built before from these sources for these packages.

        Raises UserError where a compiler or headers are missing, or the cache cannot be written."""
        folder = cache_folder() / f"{self.name}-{self._key()}"
        try:
            return kept_library(folder, self.file, self.title, self._compile, say=self.takes_long)
        except OSError as error:
            raise UserError(f"{self.title} cannot be written to {folder}: {error}; set XDG_CACHE_HOME.") from None

    def _key(self) -> str:
        versions = map(metadata.version, self.packages)
        digest = hashlib.sha256(" ".join([*versions, platform.system(), platform.machine(), *self.flags]).encode())
        for path in sorted(self.folder.glob("*.[ch]*")):
            digest.update(path.read_bytes())
        return digest.hexdigest()[:16]

    def _compile(self, folder: Path) -> Path:
        compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), None)
        if compiler is None:
            raise UserError(
                f"{self.title} needs a C++ compiler, which builds it once; install g++ or clang and repeat."
            )
        sources = sorted(self.folder.glob("*.cc"))
        flags = [*self.flags, *(f"-I{path}" for path in self.include)]
        objects = [folder / f"{source.stem}.o" for source in sources]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(lambda s, o: self._run(compiler, *flags, "-c", s, "-o", o), sources, objects):
                pass
        self._run(compiler, "-shared", *objects, *self.linked, "-o", folder / self.file)
        return folder / self.file

    def _run(self, *command: str | Path) -> None:
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode == 0:
            return
        for mark, message in self.missing.items():
            if mark in result.stderr:
                raise UserError(message)
        lines = [line for line in result.stderr.splitlines() if "error" in line] or ["no message"]
        raise UserError(f"{self.title} cannot be built ({lines[0]}); install a newer g++ or clang.")


def cache_folder() -> Path:
    """The user's, for what is built once."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rwkv_mlc"

"""Libraries of ours that are built on the machine that needs them and kept in the user's cache: whole, and nobody else's."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from ..artifact.disk import digest
from ..errors import UserError

LOCK, SUM = "lock", ".sha256"


def kept_library(folder: Path, file: str, title: str, compile_in: Callable[[Path], Path], say: bool = True) -> Path:
    """The library ``file`` of a folder of the cache, which is built where it is not there or not as it was built: its SHA-256
    lies beside it. ``compile_in`` builds it in the folder that it is given and returns its path there; ``title`` names it
    in messages, such as that it is built, which ``say`` asks for. What a build that died has left is removed.

    Raises OSError where the folder cannot be written, and UserError where others could have written into it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_owner(folder)
    library, checksum = folder / file, folder / f"{file}{SUM}"
    with FileLock(folder / LOCK):
        for left in folder.iterdir():
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
        if not _is_whole(library, checksum):
            if say:
                print(f"{title} is built, which is needed once and takes a minute...", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                built = compile_in(Path(scratch))
                written = Path(scratch) / checksum.name
                written.write_text(digest(built, "sha256"), encoding="ascii")
                written.replace(checksum)
                built.replace(library)
    return library


def _is_whole(library: Path, checksum: Path) -> bool:
    if not (library.is_file() and checksum.is_file()):
        return False
    return digest(library, "sha256") == checksum.read_text(encoding="ascii", errors="replace")


def _check_owner(folder: Path) -> None:
    status = folder.stat()
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UserError(
            f"{folder} belongs to another user, or others may write into it, and what lies there would be run; remove it, or "
            "set XDG_CACHE_HOME to a folder of your own."
        )

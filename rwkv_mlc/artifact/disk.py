"""Files and folders that are either whole or absent, whenever the process dies."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import UserError
from ..regular_files import check_name

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def staging(final: Path, keep: Callable[[str], bool] | None = None) -> Iterator[Path]:
    """Build the folder ``final`` in a sibling folder, which takes its place when the body ends without an exception.

    Files of ``final`` for whose names ``keep`` is true are in the sibling from the start, as hard links: replace them,
    never write into them. An exception, a full disk or the end of the process leaves ``final`` as it was; what a
    process that died has left is removed by the next build. Raises UserError when the disk is full or another process
    is building ``final``."""
    final = final.resolve()
    staged, previous = (final.parent / f".{final.name}.{what}" for what in ("staged", "previous"))
    with writing(final):
        if previous.exists() and not final.exists():
            previous.rename(final)
        shutil.rmtree(previous, ignore_errors=True)
        shutil.rmtree(staged, ignore_errors=True)
        _check_movable(final, previous)
        staged.mkdir()
        try:
            if keep and final.exists():
                _link_files(final, staged, keep)
            yield staged
            if final.exists():
                final.rename(previous)
            try:
                staged.rename(final)
            except BaseException:
                if previous.exists():
                    previous.rename(final)
                raise
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        shutil.rmtree(previous, ignore_errors=True)


def _check_movable(final: Path, previous: Path) -> None:
    """Raise UserError for a folder that cannot be renamed, such as a mount point, before the work on what is to replace it."""
    if not final.exists():
        return
    try:
        final.rename(previous)
        previous.rename(final)
    except OSError as error:
        raise UserError(
            f"{final} cannot be replaced ({error.strerror}); name a folder inside it, or another one."
        ) from None


def _link_files(source: Path, target: Path, keep: Callable[[str], bool]) -> None:
    for file in source.rglob("*"):
        if file.is_file() and keep(file.name):
            link = target / file.relative_to(source)
            link.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file, link)
            except OSError:  # a file system without hard links, or another user's file
                shutil.copy2(file, link)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Hold ``path`` against other processes that write it. Raises UserError when one does, or when the disk is full."""
    try:
        with _locked(path):
            yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise UserError(f"The disk that holds {path} is full; free some space and repeat.") from None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(path.parent / f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"Another process is building {path}; wait until it is done.") from None
    except OSError as error:
        if error.errno in NO_SPACE:
            raise
        raise UserError(f"Cannot write into {path.parent} ({error.strerror}); choose another folder.") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A sibling file to write, which takes the place of ``path``, or of what that links to, when the body ends without an
    exception; ``path`` itself where that is a device or a pipe.

    Raises IsADirectoryError for a path that names no file, such as ``/`` or a folder."""
    if path.exists() and not path.is_file() and not path.is_dir():
        yield path
        return
    partial = _partial(path)
    try:
        yield partial
        partial.replace(path.resolve())
    finally:
        partial.unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    check_name(path)
    if not path.name or path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path = path.resolve()
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)  # it may be a link, which would be written through
    return partial


def check_output(path: Path) -> None:
    """Raise UserError where ``beside`` could not write, before the work whose result is to go there."""
    try:
        check_name(path)
        if not path.exists() or path.is_file() or path.is_dir():
            partial = _partial(path)
            partial.touch()
            partial.unlink()
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); name a file in a folder that is there."
        ) from None


def write_json(path: Path, data: Any) -> None:
    """Write beside ``path`` and rename."""
    with beside(path) as partial:
        partial.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def digest(path: Path, algorithm: str) -> str:
    """Hexadecimal hash of a file's bytes."""
    hasher = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            hasher.update(chunk)
    return hasher.hexdigest()

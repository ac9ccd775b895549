"""Where a conversion writes, held against other processes and taken only when it is whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ..artifact.disk import beside, check_output, staging, writing
from ..errors import UserError
from ..weights.folder import CONFIG


def check_free(path: Path, overwrite: bool) -> None:
    """Raises UserError for an output that is there and may not be replaced, before the work."""
    if not path.exists() and not path.is_symlink():
        return
    if path.is_dir():
        if not any(path.iterdir()):
            return
        if not (path / CONFIG).is_file():
            raise UserError(f"{path} holds other files and no model; name a new folder, so that they stay.")
    if not overwrite:
        raise UserError(f"{path} is there already; name another, or add --overwrite to replace it.")


@contextlib.contextmanager
def new_folder(path: Path, overwrite: bool) -> Iterator[Path]:
    """A folder to write into, which takes the place of ``path`` when the body ends without an exception. Raises UserError as
    ``check_free``, for a file of that name, a full disk, and another process that writes there."""
    check_free(path, overwrite)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; name another folder.")
    with staging(path) as folder:
        yield folder


@contextlib.contextmanager
def new_file(path: Path, overwrite: bool) -> Iterator[Path]:
    """The same for a file."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file.")
    check_free(path, overwrite)
    check_output(path)
    with writing(path), beside(path) as partial:
        yield partial

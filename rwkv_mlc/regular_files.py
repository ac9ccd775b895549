"""Files of unknown origin, looked at before they are opened: a pipe would be waited for, a device has no end, and what a
file names may lie outside of its folder.

Every function raises OSError, with a ``strerror`` that says what is wrong.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

KINDS = {
    stat.S_IFIFO: "it is a pipe",
    stat.S_IFCHR: "it is a device",
    stat.S_IFBLK: "it is a device",
    stat.S_IFSOCK: "it is a socket",
    stat.S_IFDIR: "it is a directory",
}


def size_of(path: Path) -> int:
    """The bytes of a regular file, which a link may lead to."""
    check_name(path)
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        what = KINDS.get(stat.S_IFMT(status.st_mode), "it is no regular file")
        raise OSError(errno.EINVAL, what, str(path))
    return status.st_size


def read_bytes(path: Path, limit: int) -> bytes:
    """What a regular file of at most ``limit`` bytes holds."""
    if (size := size_of(path)) > limit:
        raise OSError(errno.EFBIG, f"it has {size:,} bytes, expected at most {limit:,}", str(path))
    return path.read_bytes()


def check_inside(path: Path, folder: Path) -> Path:
    """``path``, a regular file that lies below ``folder`` when all links are followed."""
    size_of(path)
    if not path.resolve().is_relative_to(folder.resolve()):
        raise OSError(errno.EPERM, f"it is a link out of {folder}", str(path))
    return path


def check_name(path: Path) -> None:
    """Raises OSError for a path that no file system takes."""
    if "\0" in str(path):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(path))
    try:
        longest, length = max((len(os.fsencode(part)) for part in path.parts), default=0), len(os.fsencode(path))
    except UnicodeEncodeError:
        raise OSError(errno.EILSEQ, os.strerror(errno.EILSEQ), str(path)) from None
    if longest > 255 or length >= 4096:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(path))

"""A fence around the process that runs cases: what Python code writes, renames or removes lies within it, or it is not done."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {
    # event of sys.audit: the places of paths among its arguments, each with that of its folder's descriptor
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
    "os.utime": ((0, 3),),
    "os.truncate": ((0, None),),
    "os.setxattr": ((0, None),),
    "os.removexattr": ((0, None),),
}
PROCESSES = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty")
HARMLESS = ("ldconfig",)  # programs, by which Python finds a library
NOWHERE = Path(os.devnull)
SYSTEM = (Path("/dev"), Path("/proc"))  # what is no folder of anybody's: whoever is told to write there is refused


class Fence:
    """``inside`` are the folders that may be written to, and ``named`` the names of files that may be anywhere.

    All else is refused, as a system does that does not permit it. ``breaches`` has what was refused, unless the case itself
    named it: ``told`` are paths of its arguments, which commands write to, or beside."""

    def __init__(self, inside: Iterable[Path], named: Iterable[str] = ()):
        self.inside = [folder.resolve() for folder in inside]
        self.named = tuple(named)
        self.told: list[Path] = []
        self.breaches: list[str] = []

    def close(self) -> None:
        """From now on, to the end of the process."""
        sys.addaudithook(self._look)

    def tell(self, words: Iterable[str]) -> None:
        """Name the paths that the next case may be told to write to, relative ones from the folder it runs in."""
        self.told = []
        for word in words:
            with contextlib.suppress(ValueError, OSError):  # it is no path
                self.told.append(Path(os.path.realpath(word)).parent)

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & WRITING:
                self._check(event, path, None)
        elif event in CHANGES:
            for place, folder in CHANGES[event]:
                descriptor = None if folder is None else arguments[folder]
                self._check(event, arguments[place], descriptor)
        elif event in PROCESSES and _program(arguments) not in HARMLESS:
            self._refuse(f"{event} {arguments[:2]!r}"[:300])

    def _check(self, event: str, given: Any, descriptor: int | None) -> None:
        if isinstance(given, int):  # it was opened before
            return
        path = Path(os.fsdecode(given))
        if descriptor is not None and descriptor >= 0:
            path = Path(f"/proc/self/fd/{descriptor}").readlink() / path
        place = Path(os.path.realpath(path if event == "open" else path.parent))  # a link itself is removed
        place = place if event == "open" else place / path.name
        if place == NOWHERE or _below(place, self.inside) or any(name in path.name for name in self.named):
            return
        self._refuse(f"{event} of {place}"[:300], reported=not _below(place, (*SYSTEM, *self.told)))

    def _refuse(self, what: str, reported: bool = True) -> None:
        if reported:
            self.breaches.append(what)
        raise PermissionError(errno.EPERM, f"outside of the fence: {what}")


def _program(arguments: tuple[Any, ...]) -> str:
    return Path(os.fsdecode(arguments[0])).name if arguments and arguments[0] else ""


def _below(path: Path, folders: Iterable[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)

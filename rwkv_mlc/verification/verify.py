"""Which libraries a path names, and what is told of each."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..artifact import Artifact, BuildRecord
from ..artifact.names import BUILD_RECORD
from ..errors import UserError

INSTALL = "pip install 'rwkv_mlc[verify]'"


def verify(path: Path, run: bool = False, tell: Callable[[str], None] = lambda what: None) -> list[dict[str, Any]]:
    """For an artifact's folder each of its libraries, for a library that one: what is inside, by ``describe``, and the
    ``checks``, each with ``check``, ``status`` ("passed", "failed" or "skipped") and ``detail``. No library is loaded, unless
    ``run`` asks for it: then those for devices of this machine are run, each in a process of its own. ``tell`` is told which
    is run.

    Raises UserError where there is none, for a file that is no library, and where lief, which reads them, is not installed."""
    if not path.exists():
        raise UserError(f"There is no {path}; name an artifact's folder or a library.")
    folder = path if path.is_dir() else path.parent
    artifact = Artifact.open(folder) if path.is_dir() or _lists(folder, path) else None
    report = _reporter()
    if artifact is None:
        return [report(path, None, None, run)]
    records = artifact.libraries().items()
    chosen = [(target, record) for target, record in records if path.is_dir() or record.path.name == path.name]
    if not chosen:
        raise UserError(f"{path} has no library; write one with rwkv-mlc compile {path}.")
    reports = []
    for target, record in chosen:
        if run:
            tell(f"running {record.path.name}")
        reports.append({"target": target, **report(record.path, artifact, target, run)})
    return reports


def _lists(folder: Path, library: Path) -> bool:
    """Whether ``folder`` is an artifact with this library in its record."""
    if not (folder / BUILD_RECORD).is_file():
        return False
    return any(record.path.name == library.name for record in BuildRecord.read(folder).libraries.values())


def _reporter() -> Callable[[Path, Artifact | None, str | None, bool], dict[str, Any]]:
    """``report.report``. Raises UserError where lief is not installed."""
    try:
        with _uninterrupted():
            from .report import report
    except ModuleNotFoundError as error:
        if error.name != "lief":
            raise
        raise UserError(
            f"verify reads libraries with lief, which is not installed; install it with {INSTALL}."
        ) from None
    return report


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits for the end of the body: lief, while it is loaded, would abort the process."""
    handler, noted = signal.getsignal(signal.SIGINT), list[Any]()
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    signal.signal(signal.SIGINT, lambda *arguments: noted.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    for arguments in noted:
        handler(*arguments)

"""What ``rwkv-mlc verify`` tells, as data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..artifact import Artifact, BuildRecord
from ..artifact.names import BUILD_RECORD
from ..errors import UserError
from ..library_format import ALL
from .checks import run_checks
from .fatbin import read_fatbin, read_resources
from .library import Library


def verify(path: Path, run: bool = False) -> list[dict[str, Any]]:
    """For an artifact's folder each of its libraries, for a library that one: what is inside, by ``describe``, and the
    ``checks``, each with ``check``, ``status`` ("passed", "failed" or "skipped") and ``detail``. No library is loaded, unless
    ``run`` asks for it: then those for devices of this machine are run, each in a process of its own.

    Raises UserError where there is none, and for a file that is no library."""
    if not path.exists():
        raise UserError(f"There is no {path}; name an artifact's folder or a library.")
    folder = path if path.is_dir() else path.parent
    artifact = Artifact.open(folder) if path.is_dir() or _lists(folder, path) else None
    if artifact is None:
        return [_report(Library.open(path), run=run)]
    records = artifact.libraries().items()
    chosen = [(target, record) for target, record in records if path.is_dir() or record.path.name == path.name]
    if not chosen:
        raise UserError(f"{path} has no library; write one with rwkv-mlc compile {path}.")
    return [
        {"target": target, **_report(Library.open(record.path), artifact, target, run)} for target, record in chosen
    ]


def _lists(folder: Path, library: Path) -> bool:
    """Whether ``folder`` is an artifact with this library in its record."""
    if not (folder / BUILD_RECORD).is_file():
        return False
    return any(record.path.name == library.name for record in BuildRecord.read(folder).libraries.values())


def _report(
    library: Library, artifact: Artifact | None = None, target: str | None = None, run: bool = False
) -> dict[str, Any]:
    try:
        described = describe(library)
    except ValueError as error:
        raise UserError(f"The kernels inside {library.path} are damaged ({error}); build it again.") from None
    return {**described, "checks": [vars(outcome) for outcome in run_checks(library, artifact, target, run)]}


def describe(library: Library) -> dict[str, Any]:
    """What is inside a library. ``kernels`` are those of a GPU: ``name``, ``bytes`` of its own code where it has its own,
    and for CUDA ``resources`` by architecture. ``architectures`` are those of the kernels' code."""
    kernels: dict[str, dict[str, Any]] = {}
    architectures = []
    for module in library.kernel_modules():
        for name in module.names:
            kernels[name] = {"name": name}
            if name in module.code:
                kernels[name]["bytes"] = len(module.code[name])
        if module.format == "fatbin":
            for image in read_fatbin(module.code[ALL]):
                architectures.append(image.architecture)
                taken = read_resources(image.code) if image.is_machine_code else {}
                for name, resources in taken.items():
                    kernels.setdefault(name, {"name": name}).setdefault("resources", {})[image.architecture] = vars(
                        resources
                    )
    return {
        "file": str(library.path),
        "bytes": library.path.stat().st_size,
        "format": library.format,
        "architecture": library.architecture,
        "prefix": library.prefix,
        "functions": library.functions,
        "imports": list(library.imports),
        "modules": [{"kind": module.kind, "bytes": len(module.data)} for module in library.modules],
        "kind": library.kind or "cpu",
        "architectures": architectures,
        "kernels": list(kernels.values()),
    }

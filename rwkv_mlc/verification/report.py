"""What ``rwkv-mlc verify`` tells of a library, as data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..artifact import Artifact
from ..errors import UserError
from ..library_format import ALL
from .checks import run_checks
from .fatbin import read_fatbin, read_resources
from .library import Library


def report(
    path: Path, artifact: Artifact | None = None, target: str | None = None, run: bool = False
) -> dict[str, Any]:
    """What is inside the library ``path``, by ``describe``, and its ``checks``; ``artifact`` is the one whose library for
    ``target`` it is. Raises UserError for a file that is no library, or a damaged one."""
    try:
        library = Library.open(path)
    except UserError:
        if artifact is not None and target is not None:
            artifact.library(target)  # which says so where the file is not the one that was built
        raise
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

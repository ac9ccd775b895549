"""Whether a library can run here, found out before it is loaded."""

from __future__ import annotations

import importlib.metadata
import sys

from ..artifact import LibraryRecord
from ..errors import UserError
from ..machine.cpu_features import host_architecture, host_features


def check_library(library: LibraryRecord) -> None:
    """Raises UserError for object files, and for a library of another architecture, of a CPU with features that this one
    lacks, or of another version of TVM, whose runtime format may differ."""
    if library.path.suffix == ".tar":
        raise UserError(f"{library.path} is to be linked into a program; write one to load with rwkv-mlc compile.")
    architecture = (library.triple or host_architecture()).partition("-")[0].replace("arm64", "aarch64")
    again = "build it again on this machine"
    if (library.path.suffix == ".dylib") != (sys.platform == "darwin"):
        system = "macOS" if library.path.suffix == ".dylib" else "another system"
        raise UserError(f"{library.path} is for {system} and this machine runs {sys.platform}; {again}.")
    if architecture != host_architecture():
        raise UserError(f"{library.path} is for {architecture} and this machine is {host_architecture()}; {again}.")
    features = host_features()
    missing = [] if features is None else [name for name in library.cpu_features if name not in features]
    if missing:
        cpu = library.target.get("mcpu", "another CPU")
        raise UserError(f"{library.path} is for {cpu} and needs {', '.join(missing)}, which this CPU lacks; {again}.")
    built, installed = library.versions.get("apache-tvm"), importlib.metadata.version("apache-tvm")
    if built != installed:
        raise UserError(
            f"{library.path} was built with apache-tvm {built} and {installed} is installed; build it again, or install "
            f"apache-tvm=={built}."
        )

"""``build-record.json``: what an artifact was built from, and every library's target."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..config import RWKVConfig
from ..errors import UserError
from ..quantization.schemes import Scheme
from .disk import digest, read_json, write_json, writing
from .names import BUILD_RECORD, library_name

if TYPE_CHECKING:
    from ..weights.checkpoint import Checkpoint


@dataclass(frozen=True)
class LibraryRecord:
    """One compiled library. ``target`` is TVM's description of the target, ``cpu_features`` what its code needs of the
    CPU (``avx512vnni``), ``versions`` those of the packages that built it, ``time`` UTC in ISO 8601;
    ``prefill_activations`` is "float32", or "int8" where reading a prompt is faster than exact."""

    path: Path
    sha256: str
    target: dict[str, Any]
    cpu_features: list[str]
    versions: dict[str, str]
    time: str
    prefill_activations: str = "float32"

    @property
    def triple(self) -> str | None:
        """LLVM's name of the machine that loads the library: for a GPU's its host."""
        return self.target.get("host", self.target).get("mtriple")


@dataclass(frozen=True)
class BuildRecord:
    """``source`` is the checkpoint as the user named it, ``source_sha256`` the hash of its bytes; ``versions`` and
    ``time`` are those of the conversion; ``libraries`` go by their targets' names."""

    name: str
    source: str
    source_sha256: str
    source_format: str
    generation: str
    quantization: str
    head_size_divisor: int
    versions: dict[str, str]
    time: str
    rescale_every: int = 0
    libraries: dict[str, LibraryRecord] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, checkpoint: Checkpoint, sha256: str, config: RWKVConfig, scheme: Scheme) -> BuildRecord:
        """The record of a conversion that ends now; ``sha256`` is ``checkpoint.sha256()``."""
        return cls(
            name=name,
            source=checkpoint.source,
            source_sha256=sha256,
            source_format=checkpoint.format,
            generation=config.generation,
            quantization=scheme.name,
            head_size_divisor=config.head_size_divisor,
            versions=package_versions(),
            time=_now(),
            rescale_every=config.rescale_every,
        )

    def params_match(self, sha256: str, config: RWKVConfig, scheme: Scheme) -> bool:
        """Whether the parameters beside this record are those of the checkpoint with this hash in this scheme."""
        found = self.source_sha256, self.quantization, self.generation, self.head_size_divisor, self.rescale_every
        return found == (sha256, scheme.name, config.generation, config.head_size_divisor, config.rescale_every)

    def write(self, folder: Path) -> None:
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        data["libraries"] = {
            target: {"file": library.path.name, **{k: v for k, v in vars(library).items() if k != "path"}}
            for target, library in self.libraries.items()
        }
        write_json(folder / BUILD_RECORD, data)

    @classmethod
    def read(cls, folder: Path) -> BuildRecord:
        """Raises UserError for a record that is missing or damaged."""
        data = read_json(folder / BUILD_RECORD)
        try:
            libraries = {}
            for target, library in data.pop("libraries").items():
                path = folder / Path(library.pop("file")).name
                libraries[target] = _known(LibraryRecord, path=path, **library)
            return _known(cls, libraries=libraries, **data)
        except (KeyError, TypeError, AttributeError):
            raise UserError(f"{folder / BUILD_RECORD} is no valid build record; build the artifact again.") from None


def add_library(
    folder: Path,
    built: Path,
    target_name: str,
    target: dict[str, Any],
    cpu_features: list[str],
    prefill_activations: str = "float32",
) -> LibraryRecord:
    """Copy the library ``built`` into the artifact ``folder``, in place of an older one for ``target_name``.

    Before the new file is in place the record forgets the old one, so that a build that dies leaves no library whose
    record is wrong. Raises UserError when the disk is full."""
    with writing(folder):
        record = BuildRecord.read(folder)
        path = folder / library_name(record.name, target_name, built.suffix)
        partial = path.with_name(f".{path.name}.partial")
        try:
            shutil.copyfile(built, partial)
            digested, versions = digest(partial, "sha256"), package_versions()
            library = LibraryRecord(path, digested, target, sorted(cpu_features), versions, _now(), prefill_activations)
            if old := record.libraries.pop(target_name, None):
                record.write(folder)
                old.path.unlink(missing_ok=True)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        record.libraries[target_name] = library
        record.write(folder)
    return library


def package_versions() -> dict[str, str]:
    """Versions of the packages that a build depends on."""
    versions = {"rwkv_mlc": __version__}
    for package in ("apache-tvm", "numpy"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pass  # TVM from a source tree
    return versions


def _known(cls: type, **values: Any) -> Any:
    """An instance from the fields it knows, so that a record written by a newer version stays readable."""
    names = {f.name for f in dataclasses.fields(cls)}
    return cls(**{name: value for name, value in values.items() if name in names})


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")

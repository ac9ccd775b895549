"""``build-record.json``: what an artifact was built from, and every library's target."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__, schema
from ..config import RWKVConfig
from ..quantization.schemes import Scheme
from ..schema import Abi, Activations, Family, LibraryRecord
from ..typed_json import read
from .disk import digest, write_json, writing
from .names import BUILD_RECORD, library_name

if TYPE_CHECKING:
    from ..weights.checkpoint import Checkpoint


class BuildRecord(schema.BuildRecord):
    """The record in the folder of an artifact."""

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
            lora=schema.LoraRecord(file=str(lora.file), alpha=lora.alpha) if (lora := checkpoint.lora) else None,
        )

    def params_match(self, sha256: str, config: RWKVConfig, scheme: Scheme) -> bool:
        """Whether the parameters beside this record are those of the checkpoint with this hash in this scheme."""
        found = self.source_sha256, self.quantization, self.generation, self.head_size_divisor, self.rescale_every
        return found == (sha256, scheme.name, config.generation, config.head_size_divisor, config.rescale_every)

    def write(self, folder: Path) -> None:
        write_json(folder / BUILD_RECORD, self.to_dict())

    @classmethod
    def read(cls, folder: Path) -> BuildRecord:
        """Raises UserError for a record that is missing or damaged."""
        record = read(cls, folder / BUILD_RECORD, "build the artifact again", inside=folder)
        return record.with_libraries(
            {
                target: library.model_copy(update={"path": folder / library.path})
                for target, library in record.libraries.items()
            }
        )

    def with_libraries(self, libraries: dict[str, LibraryRecord]) -> BuildRecord:
        return self.model_copy(update={"libraries": libraries})


def add_library(
    folder: Path,
    built: Path,
    target_name: str,
    target: dict[str, Any],
    cpu_features: list[str],
    prefill_activations: Activations = "float32",
    family: Family = "fused",
    abi: Abi = "native",
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
            library = LibraryRecord(
                path=path,
                sha256=digested,
                target=target,
                cpu_features=sorted(cpu_features),
                versions=versions,
                time=_now(),
                prefill_activations=prefill_activations,
                family=family,
                abi=abi,
            )
            others = {name: other for name, other in record.libraries.items() if name != target_name}
            if target_name in record.libraries:
                record.with_libraries(others).write(folder)
                record.libraries[target_name].path.unlink(missing_ok=True)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        record.with_libraries({**others, target_name: library}).write(folder)
    return library


def package_versions() -> dict[str, str]:
    """Versions of the packages that a build depends on."""
    versions = {"rwkv_mlc": __version__}
    for package in ("apache-tvm", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # TVM from a source tree
            versions[package] = importlib.metadata.version(package)
    return versions


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")

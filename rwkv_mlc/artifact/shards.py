"""Parameters on disk: raw little-endian tensors one after another in shards, with a JSON index.

The format is that of TVM's ``tvm.contrib.tvmjs.dump_tensor_cache``, always with the encoding ``raw``.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..regular_files import check_inside
from ..schema import ITEM_BYTES, ShardEntry, StoredTensorEntry, TensorIndex, TensorTotals
from ..typed_json import read
from .disk import digest, write_json
from .names import SHARD, TENSOR_INDEX, TENSOR_INDEX_2023, VERIFIED

SHARD_CAPACITY = 32 << 20
DTYPES = {name: np.dtype(name).newbyteorder("<") for name in ITEM_BYTES}


class ShardWriter:
    """Writes tensors into shards of 32 MB; one of half a shard or more that no longer fits gets a shard of its own."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.shards: list[ShardEntry] = []
        self.nbytes = 0
        self._data, self._tensors = bytearray(), list[StoredTensorEntry]()

    def add(self, name: str, array: np.ndarray) -> None:
        array = np.ascontiguousarray(array, DTYPES[array.dtype.name])
        data = array.data.cast("B")
        self.nbytes += array.nbytes
        if len(self._data) + array.nbytes >= SHARD_CAPACITY:
            if 2 * array.nbytes >= SHARD_CAPACITY:
                self._write(data, [_entry(name, array, 0)])
                return
            self._flush()
        self._tensors.append(_entry(name, array, len(self._data)))
        self._data += data

    def finish(self, parameter_count: int) -> None:
        """Write the last shard and the index under both names; ``parameter_count`` counts unquantized weights."""
        self._flush()
        totals = TensorTotals(
            tensors=sum(len(shard.records) for shard in self.shards),
            nbytes=self.nbytes,
            bits_per_weight=8 * self.nbytes / parameter_count,
        )
        index = TensorIndex(metadata=totals, records=tuple(self.shards)).to_dict()
        for name in (TENSOR_INDEX, TENSOR_INDEX_2023):
            write_json(self.folder / name, index)

    def _flush(self) -> None:
        if self._data:
            self._write(self._data, self._tensors)
            self._data, self._tensors = bytearray(), []

    def _write(self, data: bytearray | memoryview, tensors: list[StoredTensorEntry]) -> None:
        path = self.folder / SHARD.format(len(self.shards))
        path.write_bytes(data)
        md5sum = hashlib.md5(data, usedforsecurity=False).hexdigest()
        self.shards.append(ShardEntry(file=path.name, nbytes=len(data), records=tuple(tensors), md5sum=md5sum))


def _entry(name: str, array: np.ndarray, offset: int) -> StoredTensorEntry:
    return StoredTensorEntry(name=name, shape=array.shape, dtype=array.dtype.name, nbytes=array.nbytes, offset=offset)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a shard; a slice of it is read from the file."""

    path: Path
    shape: tuple[int, ...]
    dtype: str
    offset: int

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Raises UserError for a file that has become shorter."""
        start, stop, _ = rows.indices(self.shape[0])
        dtype, row = DTYPES[self.dtype], math.prod(self.shape[1:])
        array = np.fromfile(self.path, dtype, (stop - start) * row, offset=self.offset + start * row * dtype.itemsize)
        if array.size != (stop - start) * row:
            raise UserError(f"{self.path} is damaged: it ends too early; build or copy it again.")
        return array.reshape(stop - start, *self.shape[1:])

    def mapped(self) -> np.ndarray:
        """The whole tensor as a view on the mapped file, of which what is read comes into memory. Raises UserError for a file
        that has become shorter."""
        try:
            return np.memmap(self.path, DTYPES[self.dtype], "c", self.offset, self.shape)
        except ValueError:
            raise UserError(f"{self.path} is damaged: it ends too early; build or copy it again.") from None


@dataclass(frozen=True)
class Shard:
    path: Path
    nbytes: int
    md5sum: str
    tensors: dict[str, StoredTensor]

    def arrays(self) -> dict[str, np.ndarray]:
        """Read-only views on the mapped file."""
        with open(self.path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return {name: np.ndarray(t.shape, DTYPES[t.dtype], mapped, t.offset) for name, t in self.tensors.items()}


def read_index(folder: Path) -> list[Shard]:
    """The shards that the index of ``folder`` describes. Raises UserError for an index that is damaged."""
    index = read(TensorIndex, folder / TENSOR_INDEX, "build the artifact again", inside=folder)
    return [_shard(folder / entry.file, entry) for entry in index.records]


def _shard(path: Path, entry: ShardEntry) -> Shard:
    tensors = {t.name: StoredTensor(path, t.shape, t.dtype, t.offset) for t in entry.records}
    return Shard(path, entry.nbytes, entry.md5sum, tensors)


def verify(folder: Path, shards: list[Shard]) -> None:
    """Check that every shard is there, whole and unchanged; raises UserError that names the first which is not.

    A shard that passed is not read again until its size or time of change differs."""
    stamps = {shard.path.name: _stamp(shard) for shard in shards}
    marker = folder / VERIFIED
    try:
        verified = read(dict[str, tuple[int, int, str]], marker, "remove it", inside=folder)
    except UserError:
        verified = {}
    suspects = [shard for shard in shards if verified.get(shard.path.name) != stamps[shard.path.name]]
    if not suspects:
        return
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for shard, found in zip(suspects, pool.map(_md5sum, suspects)):
            if found != shard.md5sum:
                raise UserError(f"{shard.path} is damaged: its checksum differs; build the artifact again.")
    with contextlib.suppress(OSError):  # a read-only folder is checked every time
        write_json(marker, stamps)


def _md5sum(shard: Shard) -> str:
    try:
        return digest(shard.path, "md5")
    except OSError as error:
        raise UserError(f"{shard.path} cannot be read ({error.strerror}); build or copy it again.") from None


def _stamp(shard: Shard) -> tuple[int, int, str]:
    try:
        status = check_inside(shard.path, shard.path.parent).stat()
    except FileNotFoundError:
        raise UserError(f"The artifact lacks {shard.path}; build or copy it again.") from None
    except OSError as error:
        raise UserError(f"{shard.path} cannot be read ({error.strerror}); build or copy it again.") from None
    if status.st_size != shard.nbytes:
        raise UserError(
            f"{shard.path} is damaged: it has {status.st_size} bytes, expected {shard.nbytes}; build or copy it again."
        )
    return status.st_size, status.st_mtime_ns, shard.md5sum

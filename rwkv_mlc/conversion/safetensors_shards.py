"""Shards of safetensors, written one tensor after the other.

The format is that of https://github.com/huggingface/safetensors#format. Its own library takes all tensors of a file at
once, which are gigabytes."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..artifact.disk import write_json
from ..errors import UserError
from ..escaping import quoted
from ..weights.huggingface import INDEX, STORED_TYPES
from .tensors import DTYPES, OutputTensor, Progress, silent

TYPE_NAMES = {dtype: name for name, dtype in STORED_TYPES.items()}
ALIGNMENT = 8
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
SIZE = re.compile(r"(\d{1,12})\s*([KMG]I?B|)", re.IGNORECASE)


def size_in_bytes(text: str) -> int:
    """Of a size as transformers takes it: ``2GB``, ``500MiB`` or bytes. Raises UserError for another text, and for nothing."""
    found = SIZE.fullmatch(text.strip())
    size = int(found[1]) * UNITS[found[2].upper()] if found else 0
    if size == 0:
        raise UserError(f"--max-shard-size takes a size such as 2GB or 500MB, not {quoted(text)}.")
    return size


def write_shards(
    folder: Path, tensors: Sequence[OutputTensor], largest: int, progress: Progress = silent
) -> list[Path]:
    """``model.safetensors``, or where that would have more than ``largest`` bytes several, each with no more unless one tensor
    has, and their index. Returns the files of tensors. Raises UserError as ``OutputTensor.bytes``."""
    shards = _divided(tensors, largest)
    names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = ["model.safetensors"]
    done = 0
    for name, shard in zip(names, shards):
        with open(folder / name, "wb") as file:
            ordered = _aligned(shard)
            file.write(_header(ordered))
            for tensor in ordered:
                file.write(tensor.bytes())
                done += 1
                progress(done, len(tensors))
    if len(shards) > 1:
        weight_map = {tensor.name: name for name, shard in zip(names, shards) for tensor in shard}
        total = sum(tensor.nbytes for tensor in tensors)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(folder / f"model.safetensors{INDEX}", index)
    return [folder / name for name in names]


def _divided(tensors: Iterable[OutputTensor], largest: int) -> list[list[OutputTensor]]:
    shards: list[list[OutputTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > largest:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def _aligned(shard: Iterable[OutputTensor]) -> list[OutputTensor]:
    """Those of larger elements first, so that each begins at a multiple of its element's size."""
    return sorted(shard, key=lambda tensor: -DTYPES[tensor.dtype].itemsize)


def _header(tensors: Iterable[OutputTensor]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for tensor in tensors:
        end = start + tensor.nbytes
        entries[tensor.name] = {
            "dtype": TYPE_NAMES[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": (start, end),
        }
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text

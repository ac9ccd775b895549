"""Hugging Face's folders and safetensors: which files hold the weights, and their names in BlinkDL's words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes  # noqa: F401  gives numpy its bfloat16, which safetensors asks for by name
import numpy as np
from safetensors import SafetensorError, safe_open

from ..errors import UserError
from ..escaping import listed, shortened
from ..models import GENERATIONS
from ..regular_files import check_inside
from ..schema import FolderConfig, WeightIndex
from ..typed_json import read
from .checkpoint import LazyTensor

STORED_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

WEIGHT_FILES = [
    "model.safetensors.index.json",
    "model.safetensors",
    "*.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "*.pth",
]


def blinkdl_names(tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The same tensors under BlinkDL's names, by the rules of the latest generation that recognizes them so; names that are
    BlinkDL's already stay. Where none recognizes them, ``models.detect_config`` will refuse them; it finds what to say of
    them under the oldest one's names."""
    renamed = tensors
    for generation in reversed(GENERATIONS.values()):
        renamed = {_rename(name, generation.hugging_face_names): tensor for name, tensor in tensors.items()}
        if generation.recognizes({name: tensor.shape for name, tensor in renamed.items()}):
            break
    return renamed


def _rename(name: str, rules: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(f"^{pattern}", replacement, name)
    return name


def read_safetensors(path: Path) -> dict[str, LazyTensor]:
    """The tensors of a safetensors file under their own names. Raises UserError for a damaged file or another dtype."""

    def lazy_tensor(name: str, shape: tuple[int, ...], dtype: str) -> LazyTensor:
        def read() -> np.ndarray:
            # Opened for this read only: what stays mapped counts as the process's memory.
            with safe_open(path, "np") as file:
                return file.get_tensor(name).astype(np.float32, copy=False)

        return LazyTensor(shape, STORED_TYPES[dtype], read)

    tensors = {}
    try:
        with safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118  safe_open gives no iterator
                entry = file.get_slice(name)
                if entry.get_dtype() not in STORED_TYPES:
                    raise UserError(
                        f"{path} holds {shortened(name)} as {entry.get_dtype()}; expected float32, float16 or bfloat16 weights."
                    )
                tensors[name] = lazy_tensor(name, tuple(entry.get_shape()), entry.get_dtype())
    except SafetensorError as error:
        raise UserError(f"{path} is truncated or damaged ({shortened(str(error))}); download it again.") from None
    return tensors


def read_config(folder: Path) -> FolderConfig:
    """The folder's ``config.json``. Raises UserError where it is missing or a value does not fit."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} has no config.json; expected a Hugging Face folder, or give the weight file's path.")
    return read(FolderConfig, path, "correct it, or download it again")


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights, by the first of ``WEIGHT_FILES`` that is there.

    Raises UserError when there are none, several to choose from, or a shard of an index is missing."""
    for pattern in WEIGHT_FILES:
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            names = listed([path.name for path in found])
            raise UserError(f"{folder} holds several checkpoints ({names}) and no index; give the path of one of them.")
        if found:
            return _shards(found[0]) if pattern.endswith(".json") else found
    raise UserError(f"{folder} holds no weights; expected one of {', '.join(WEIGHT_FILES)}.")


def _shards(index: Path) -> list[Path]:
    names = read(WeightIndex, index, "download it again").weight_map.values()
    shards = [index.parent / name for name in sorted(set(names))]
    missing = [shard.name for shard in shards if not shard.exists()]
    if missing:
        raise UserError(f"{index.parent} lacks {listed(missing)}, which {index.name} names; download it again.")
    for shard in shards:
        try:
            check_inside(shard, _root(index.parent))
        except OSError as error:
            raise UserError(f"{index} names {shard.name}, which cannot be read ({error.strerror}).") from None
    return shards


def _root(folder: Path) -> Path:
    """Where links of a folder may lead: into the folder, or for one of the hub's cache (``models--*/snapshots/<commit>``) into
    its repository, whose blobs hold the files."""
    return folder.parent.parent if folder.parent.name == "snapshots" else folder

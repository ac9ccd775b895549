"""Hugging Face's folders and safetensors: which files hold the weights, and their names in BlinkDL's words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

import ml_dtypes  # noqa: F401  gives numpy its bfloat16, which safetensors asks for by name
import numpy as np
from safetensors import SafetensorError, safe_open

from ..errors import UserError
from ..escaping import listed, shortened
from ..models import GENERATIONS
from ..regular_files import check_inside
from ..schema import WeightIndex
from ..typed_json import read
from .checkpoint import LazyTensor

MOST_AXES = 32
STORED_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}

INDEX = ".index.json"
WEIGHT_FILES = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")
"""In the order in which transformers looks for them (``modeling_utils.py``)."""

OTHER_FILES = ("*.safetensors", "*.st", "*.pth", "*.gguf")
SHARD = re.compile(r"-\d+-of-\d+\.(safetensors|bin)$")
MODEL_PARTS = ("emb", "embeddings", "blocks", "ln_out", "head")
TIED = ("emb.weight", "head.weight")


def blinkdl_names(tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The same tensors under BlinkDL's names, by the rules of the latest generation that recognizes them so; names that are
    BlinkDL's already stay. What all names begin with, such as the ``_forward_module.`` and ``base_model.model.`` of
    wrappers around a model, is taken off. Where no generation recognizes them, ``models.detect_config`` will refuse them; it
    finds what to say of them under the oldest one's names. Raises UserError where two tensors have one name by these rules."""
    prefix = _shared_prefix(tensors)
    found: dict[str, str] = {}
    for generation in reversed(GENERATIONS.values()):
        found = {name: rename(name.removeprefix(prefix), generation.hugging_face_names) for name in tensors}
        if generation.recognizes({found[name]: tensor.shape for name, tensor in tensors.items()}):
            break
    renamed: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        if found[name] in renamed:
            names = listed([other for other in tensors if found[other] == found[name]])
            raise UserError(f"The weights hold {found[name]} twice, as {names}; remove what is not of this model.")
        renamed[found[name]] = tensor
    return renamed


def _shared_prefix(names: Iterable[str]) -> str:
    """What all names begin with before the parts of a model."""
    parts = zip(*(name.split(".")[:-1] for name in names))
    shared = takewhile(lambda part: len(set(part)) == 1 and part[0] not in MODEL_PARTS, parts)
    return "".join(f"{part[0]}." for part in shared)


def rename(name: str, rules: Sequence[tuple[str, str]]) -> str:
    """A name by the rules of ``Generation.hugging_face_names``."""
    for pattern, replacement in rules:
        name = re.sub(f"^{pattern}", replacement, name)
    return name


def read_safetensors(path: Path) -> dict[str, LazyTensor]:
    """The tensors of a safetensors file under their own names. Raises UserError for a damaged file or another dtype."""

    def lazy_tensor(name: str, shape: tuple[int, ...], dtype: str) -> LazyTensor:
        def read() -> np.ndarray:
            # Opened for this read only: what stays mapped counts as the process's memory.
            with safe_open(path, "np") as file:
                array = file.get_tensor(name)
                return array if array.dtype == np.float64 else array.astype(np.float32, copy=False)

        return LazyTensor(shape, STORED_TYPES[dtype], read)

    tensors = {}
    try:
        with safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118  safe_open gives no iterator
                entry = file.get_slice(name)
                if entry.get_dtype() not in STORED_TYPES:
                    raise UserError(
                        f"{path} holds {shortened(name)} as {entry.get_dtype()}; expected float64, float32, float16 or "
                        "bfloat16 weights."
                    )
                if len(entry.get_shape()) > MOST_AXES:
                    raise UserError(
                        f"{path} holds {shortened(name)} with {len(entry.get_shape())} axes, expected at most {MOST_AXES}."
                    )
                tensors[name] = lazy_tensor(name, tuple(entry.get_shape()), entry.get_dtype())
    except SafetensorError as error:
        raise UserError(f"{path} is truncated or damaged ({shortened(str(error))}); download it again.") from None
    return tensors


@dataclass(frozen=True)
class WeightFiles:
    """The ``files`` of one model's weights; with an ``index`` that gives the file of every tensor where there are several.
    ``named_for_folder`` says that the files' names say nothing of the model."""

    files: list[Path]
    index: Path | None = None
    file_of: Mapping[str, str] = field(default_factory=dict)
    named_for_folder: bool = True

    @property
    def missing(self) -> list[str]:
        return [file.name for file in self.files if not file.is_file()]

    def check_files(self) -> None:
        """Raise UserError where a file that the index names is missing."""
        if self.missing and self.index is not None:
            raise UserError(
                f"{self.index.parent} lacks {', '.join(self.missing)}, which {self.index.name} names; download it again."
            )

    def of_file(self, file: Path, found: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
        """What a file is to give of what it holds: what the index says is elsewhere is not this file's."""
        return {name: tensor for name, tensor in found.items() if self.file_of.get(name, file.name) == file.name}

    def check_complete(self, tensors: Mapping[str, LazyTensor]) -> None:
        """Raise UserError where the index names tensors that its files do not hold."""
        absent = [name for name in self.file_of if name not in tensors]
        if absent and self.index is not None:
            more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
            raise UserError(
                f"{self.index} says that {self.file_of[absent[0]]} holds {absent[0]}{more}, which it does not; the index is of "
                "other files: remove what is not of this model, or download it again."
            )


def holds_weights(folder: Path) -> bool:
    """Whether a folder has files of weights, whatever is in them."""
    return any(next(folder.glob(pattern), None) for pattern in (*WEIGHT_FILES, *OTHER_FILES))


def weights_of_folder(folder: Path) -> WeightFiles:
    """The weights that transformers would load from a folder; where it holds none by the names that transformers knows, its
    only file in one of ``OTHER_FILES``. An index whose shards are not all there gives way to a whole file.

    Raises UserError when there are none, several to choose from, or a shard of an index is missing."""
    incomplete = []
    for path in (folder / name for name in WEIGHT_FILES if (folder / name).exists()):
        weights = _shards(path) if is_index(path) else WeightFiles([path])
        if not weights.missing:
            return weights
        incomplete.append(weights)
    for weights in incomplete:
        weights.check_files()
    found = sorted(path for pattern in OTHER_FILES for path in folder.glob(pattern))
    if len(found) > 1:
        names = listed([path.name for path in found])
        raise UserError(f"{folder} holds several checkpoints ({names}) and no index; give the path of one of them.")
    if not found:
        raise UserError(f"{folder} holds no weights; expected one of {', '.join((*WEIGHT_FILES, *OTHER_FILES))}.")
    return WeightFiles(found)


def weights_of_file(path: Path) -> WeightFiles:
    """The weights that a file stands for: an index or a shard for all shards, any other for itself. Raises UserError for an
    index that is damaged, or whose shards are not all there."""
    if is_index(path):
        indices = [path]
    elif SHARD.search(path.name):
        indices = sorted(path.parent.glob(f"*{INDEX}"))
    else:
        return WeightFiles([path], named_for_folder=path.name in WEIGHT_FILES)
    for shards in map(_shards, indices):
        if path in (shards.index, *shards.files):
            shards.check_files()
            return shards
    return WeightFiles([path])


def is_index(path: Path) -> bool:
    return path.name.endswith(INDEX)


def _shards(index: Path) -> WeightFiles:
    file_of = read(WeightIndex, index, "download it again").weight_map
    shards = [index.parent / name for name in sorted(set(file_of.values()))]
    for shard in filter(Path.exists, shards):
        try:
            check_inside(shard, _root(index.parent))
        except OSError as error:
            raise UserError(f"{index} names {shard.name}, which cannot be read ({error.strerror}).") from None
    return WeightFiles(shards, index, file_of)


def _root(folder: Path) -> Path:
    """Where links of a folder may lead: into the folder, or for one of the hub's cache (``models--*/snapshots/<commit>``) into
    its repository, whose blobs hold the files."""
    return folder.parent.parent if folder.parent.name == "snapshots" else folder


def with_tied_head(tensors: dict[str, LazyTensor], folder: Path) -> dict[str, LazyTensor]:
    """The tensors with one matrix for embedding and head. Raises UserError where both are there and differ."""
    embedding, head = (tensors.get(name) for name in TIED)
    if embedding is not None and head is not None:
        if embedding.shape != head.shape or not np.array_equal(embedding.read(), head.read()):
            raise UserError(
                f"{folder / 'config.json'} says that the head is tied to the embedding, but the weights hold a head of "
                "their own; set tie_word_embeddings to false there if the head is right, or remove it from the weights."
            )
        return tensors
    present = embedding or head
    return tensors if present is None else tensors | dict.fromkeys(TIED, present)

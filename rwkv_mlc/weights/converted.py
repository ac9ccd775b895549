"""The parameters of a folder that mlc_llm or mlc_chat converted: an index, and shards of stored tensors."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from ..errors import UserError
from ..escaping import shortened
from ..quantization.schemes import Scheme
from ..regular_files import check_inside
from ..schema import Shape
from ..special_tokens import SpecialTokens
from ..typed_json import Bytes, Count, Extent, FileName, Schema

CHAT_CONFIG = "mlc-chat-config.json"
BFLOAT16 = "f32-to-bf16"
ADVICE = "copy or download the folder again"
AGAIN = "build from the checkpoint that it was converted from"


class ModelConfig(Schema):
    """``model_config``; what is left out of it mlc_llm takes to be these."""

    hidden_size: Extent
    num_hidden_layers: Extent
    vocab_size: Extent
    head_size: Extent = 64
    rescale_every: Count = 0
    layer_norm_epsilon: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-5


class StoredTensor(Schema):
    """A tensor in a shard; encoded, a float32 has two bytes there."""

    name: str
    shape: Shape
    dtype: Literal["float32", "float16", "uint32", "uint16"]
    encoding: Literal["raw", "f32-to-bf16"] = Field(alias="format")
    nbytes: Bytes
    offset: Bytes = Field(alias="byteOffset")

    @property
    def is_rounded(self) -> bool:
        """Whether float32 was rounded to bfloat16."""
        return self.encoding == BFLOAT16 and self.dtype == "float32"


class Shard(Schema):
    file: FileName = Field(alias="dataPath")
    format: Literal["raw-shard"]
    nbytes: Bytes
    records: tuple[StoredTensor, ...]
    md5sum: str

    @model_validator(mode="after")
    def _check_tensors(self) -> Shard:
        for tensor in self.records:
            item = 2 if tensor.is_rounded else np.dtype(tensor.dtype).itemsize
            if tensor.nbytes != item * math.prod(tensor.shape):
                raise ValueError(f"the bytes of {shortened(tensor.name)} as its shape and dtype give them")
            if tensor.offset + tensor.nbytes > self.nbytes:
                raise ValueError(f"{shortened(tensor.name)} inside its {self.nbytes} bytes")
        return self


class Index(Schema):
    records: tuple[Shard, ...]


@dataclass(frozen=True)
class Located:
    """A stored tensor with the file that it is in."""

    path: Path
    entry: StoredTensor

    def read(self) -> np.ndarray:
        """[*shape] in the tensor's dtype. Raises UserError for a file that has become shorter."""
        entry, count = self.entry, math.prod(self.entry.shape)
        stored = np.dtype("uint16" if entry.is_rounded else entry.dtype).newbyteorder("<")
        array = np.fromfile(self.path, stored, count, offset=entry.offset)
        if array.size != count:
            raise UserError(f"{self.path} is damaged: it ends too early; {ADVICE}.")
        if entry.is_rounded:
            array = (array.astype(np.uint32) << 16).view(np.float32)
        return array.astype(entry.dtype, copy=False).reshape(entry.shape)

    def read_float(self) -> np.ndarray:
        return self.read().astype(np.float32, copy=False)


@dataclass(frozen=True)
class Converted:
    """A converted folder: ``tensors`` by the names that mlc_llm gives them today, in a ``scheme`` of ours; ``done`` is what was
    done to values, as ``Generation.mlc_llm`` says it, and the rest is what ``Checkpoint`` has of that name."""

    tensors: Mapping[str, Located]
    config: ModelConfig
    scheme: Scheme
    done: Mapping[str, str]
    stated: Mapping[str, int | str]
    context_length: int | None = None
    tokens: SpecialTokens = field(default_factory=SpecialTokens)


def check_shard(path: Path, folder: Path, shard: Shard) -> None:
    """Raises UserError for a shard that is not the one of the index, by its size and checksum."""
    try:
        check_inside(path, folder)
        found = path.stat().st_size
        if found == shard.nbytes:
            with open(path, "rb") as file:
                digest = hashlib.md5(usedforsecurity=False)
                while chunk := file.read(1 << 24):
                    digest.update(chunk)
    except FileNotFoundError:
        raise UserError(f"The folder lacks {path}; {ADVICE}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {ADVICE}.") from None
    if found != shard.nbytes:
        raise UserError(f"{path} is damaged: it has {found} bytes, expected {shard.nbytes}; {ADVICE}.")
    if digest.hexdigest() != shard.md5sum:
        raise UserError(f"{path} is damaged: its checksum differs; {ADVICE}.")

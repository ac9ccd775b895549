"""Folders of parameters that mlc_llm converted: RWKV-5.2 and 6 under its dotted names, quantized or not.

They hold what mlc_llm's ``convert_weight`` writes (``interface/convert_weight.py``, ``model/rwkv5/rwkv5_loader.py``): the decay
of RWKV-5 after its exponentials, what layers add to the residual stream halved, and float32 rounded to bfloat16.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from ..errors import UserError
from ..escaping import listed, quoted, shortened
from ..models import GENERATIONS
from ..quantization.group import GroupForm
from ..quantization.schemes import SCHEMES, FloatForm, Form, Scheme
from ..regular_files import check_inside
from ..schema import ITEM_BYTES, Shape
from ..typed_json import Bytes, Count, Extent, FileName, Schema, read
from .checkpoint import Checkpoint, LazyTensor, Packed
from .huggingface import blinkdl_names
from .rwkv_cpp import INVERSES

FORMAT = "mlc_llm"  # of such checkpoints
CHAT_CONFIG = "mlc-chat-config.json"
INDICES = ("tensor-cache.json", "ndarray-cache.json")
KNOWN = {g.model_type: g.mlc_llm for g in GENERATIONS.values() if g.mlc_llm is not None}
"""What mlc_llm does to values, by the ``model_type`` of the generations that it has."""

BFLOAT16 = "f32-to-bf16"
ADVICE = "copy or download the folder again"
AGAIN = "build from the checkpoint that it was converted from"
POSITIONAL = re.compile(r"param_\d+")
HALVED = re.compile(r"model\.blocks\.(\d{1,9})\.(?:attention\.output|feed_forward\.value)\.weight")
VALUE = re.compile(r"(model\.blocks\.\d+\.feed_forward)\.value")


class ModelConfig(Schema):
    """``model_config``; what is left out of it mlc_llm takes to be these."""

    hidden_size: Extent
    num_hidden_layers: Extent
    vocab_size: Extent
    head_size: Extent = 64
    rescale_every: Count = 0
    layer_norm_epsilon: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-5


class ChatConfig(Schema):
    """What of ``mlc-chat-config.json`` the parameters depend on."""

    architecture: str | None = Field(default=None, alias="model_type")
    quantization: str | None = None
    mlc_config: ModelConfig | None = Field(default=None, alias="model_config")


class StoredTensor(Schema):
    """A tensor in a shard; encoded, a float32 has two bytes there."""

    name: str
    shape: Shape
    dtype: Literal["float32", "float16", "uint32"]
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
            item = 2 if tensor.is_rounded else ITEM_BYTES[tensor.dtype]
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


def is_converted(folder: Path) -> bool:
    """Whether a folder holds parameters for mlc_llm or mlc_chat, be they damaged."""
    return (folder / CHAT_CONFIG).is_file() and any((folder / name).is_file() for name in INDICES)


def read_converted(folder: Path, name: str, tokenizer_files: list[Path]) -> Checkpoint:
    """The model of a converted folder: tensors under BlinkDL's names with BlinkDL's values, and the packed integers of
    quantized ones as they are. Every shard is read once, for its checksum.

    Raises UserError for a folder that is damaged, contradicts itself, or is of a model, a quantization or a time whose
    parameters are stored otherwise."""
    index = next(folder / file for file in INDICES if (folder / file).is_file())
    shards = read(Index, index, ADVICE, inside=folder).records
    stored = {t.name: Located(folder / shard.file, t) for shard in shards for t in shard.records}
    if len(stored) < sum(len(shard.records) for shard in shards):
        raise UserError(f"{index} names a tensor twice; {ADVICE}.")
    if any(POSITIONAL.fullmatch(tensor) for tensor in stored):
        raise UserError(
            f"{folder} was converted by mlc_chat of 2023, which numbers its parameters (param_0) and does not name them; "
            f"{AGAIN}."
        )
    chat = read(ChatConfig, folder / CHAT_CONFIG, ADVICE, inside=folder)
    config, scheme, done = _checked(folder, chat)
    for shard in shards:
        _check_shard(folder / shard.file, folder, shard)

    whole = _whole_tensors(folder, stored, scheme, config)
    tensors = {n: _with_blinkdl_values(n, tensor, done, config) for n, tensor in whole.items()}
    tensors = blinkdl_names(tensors)
    rounded = [tensor for tensor in stored.values() if tensor.entry.is_rounded]
    return Checkpoint(
        name=re.sub(f"-{scheme.name}(-MLC)?$", "", name),
        format=FORMAT,
        source=str(folder),
        tensors=tensors,
        files=[folder / shard.file for shard in shards],
        tokenizer_files=tokenizer_files,
        layer_norm_epsilon=config.layer_norm_epsilon,
        rescale_every=config.rescale_every,
        stated={
            "model_type": chat.architecture or "",
            "vocab_size": config.vocab_size,
            "hidden_size": config.hidden_size,
            "num_hidden_layers": config.num_hidden_layers,
            "head_size": config.head_size,
        },
        quantization=scheme.name,
        warning=_loss(folder, rounded, done) if rounded else None,
    )


def _checked(folder: Path, chat: ChatConfig) -> tuple[ModelConfig, Scheme, Mapping[str, str]]:
    """The model, its scheme and what was done to values. Raises UserError for what mlc_llm converts and we do not know."""
    if chat.architecture not in KNOWN or chat.mlc_config is None:
        raise UserError(
            f"{folder / CHAT_CONFIG} is of the model type {quoted(chat.architecture)}; of mlc_llm's folders those of "
            f"{listed(KNOWN)} are read, with their model_config: {AGAIN}."
        )
    if chat.quantization not in SCHEMES:
        raise UserError(
            f"{folder} is in the quantization {quoted(chat.quantization)}, expected one of {', '.join(SCHEMES)}; {AGAIN}."
        )
    return chat.mlc_config, SCHEMES[chat.quantization], KNOWN[chat.architecture]


def _check_shard(path: Path, folder: Path, shard: Shard) -> None:
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


def _whole_tensors(
    folder: Path, stored: Mapping[str, Located], scheme: Scheme, config: ModelConfig
) -> dict[str, LazyTensor]:
    """Tensors by mlc_llm's names before quantization."""

    def rows(stem: str) -> int:
        """Of a matrix, as its own tensors say; 0 where there is none."""
        if scale := stored.get(f"{stem}.q_scale"):
            shape, form = scale.entry.shape, _form(stem, scheme)
            return shape[-1 if isinstance(form, GroupForm) and form.transposed else 0] if len(shape) == 2 else 0
        whole = stored.get(f"{stem}.weight")
        return whole.entry.shape[0] if whole and whole.entry.shape else 0

    tensors = {}
    for name, located in stored.items():
        stem = name.removesuffix(".q_weight").removesuffix(".q_scale")
        if stem == name:
            if located.entry.dtype == "uint32":
                raise UserError(f"{folder} holds {shortened(name)} as uint32, expected float weights; {ADVICE}.")
            tensors[name] = LazyTensor(located.entry.shape, located.entry.dtype, located.read_float)
            continue
        form, weight, scale = _form(stem, scheme), stored.get(f"{stem}.q_weight"), stored.get(f"{stem}.q_scale")
        if isinstance(form, FloatForm) or weight is None or scale is None:
            raise UserError(
                f"{folder} holds {shortened(name)}, which does not fit its quantization, {scheme.name}; {ADVICE}."
            )
        value = VALUE.fullmatch(stem)
        shape = (rows(stem), rows(f"{value[1]}.key") if value else config.hidden_size)
        found = tuple((tensor.entry.shape, tensor.entry.dtype) for tensor in (weight, scale))
        expected = tuple(zip(form.shapes(shape), ("uint32", form.scale_dtype)))
        if found != expected:
            raise UserError(
                f"{folder} holds {shortened(stem)} as {_described(found)}, expected {_described(expected)} in "
                f"{scheme.name}; {ADVICE}."
            )
        packed = Packed(form, partial(_pair, weight, scale))
        tensors[f"{stem}.weight"] = LazyTensor(shape, scheme.name, partial(_dequantized, packed, shape), packed)
    return tensors


def _form(stem: str, scheme: Scheme) -> Form:
    return {"model.embeddings": scheme.embedding, "head": scheme.head}.get(stem, scheme.matrix)


def _described(pair: tuple[tuple[tuple[int, ...], str], ...]) -> str:
    return " and ".join(f"{dtype} {list(shape)}" for shape, dtype in pair)


def _pair(weight: Located, scale: Located) -> tuple[np.ndarray, np.ndarray]:
    return weight.read(), scale.read()


def _dequantized(packed: Packed, shape: tuple[int, ...]) -> np.ndarray:
    return packed.form.dequantize(*packed.read(), shape)


def _with_blinkdl_values(name: str, tensor: LazyTensor, done: Mapping[str, str], config: ModelConfig) -> LazyTensor:
    """Undo what mlc_llm's loader does to values; float16 doubled is exact in float32."""
    for part, how in done.items():
        if name.endswith(f".{part}"):
            return dataclasses.replace(tensor, read=partial(_undone, tensor, how))
    halved = HALVED.fullmatch(name)
    if halved is None or not config.rescale_every or int(halved[1]) >= config.num_hidden_layers:
        return tensor
    factor = np.float32(2.0) ** min(int(halved[1]) // config.rescale_every, 127)
    return dataclasses.replace(tensor, read=lambda: tensor.read() * factor)


def _undone(tensor: LazyTensor, how: str) -> np.ndarray:
    return INVERSES[how](tensor.read().astype(np.float64))


def _loss(folder: Path, rounded: list[Located], done: Mapping[str, str]) -> str:
    """What rounding to bfloat16 took."""
    parts = sorted({re.sub(r"^model\.blocks\.\d+\.", "", tensor.entry.name) for tensor in rounded})
    lost = f"{folder} stores float32 as bfloat16, with 8 of 24 digits: {listed(parts)}."
    factors = tuple(f".{part}" for part, how in done.items() if how == "exp(-exp)")
    decays = [tensor for tensor in rounded if tensor.entry.name.endswith(factors)]
    fadeless = sum(int((tensor.read() == 1.0).sum()) for tensor in decays)
    if fadeless:
        lost += f" The decay of {fadeless} channels became exactly 1, so that their memory never fades."
    return f"{lost} A build from the checkpoint keeps them."

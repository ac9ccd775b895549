"""Folders of parameters that mlc_llm converted: RWKV-5.2 and 6 under its dotted names, and those of mlc_chat of 2023 once
``mlc_chat`` has given them such names; quantized or not.

The former hold what mlc_llm's ``convert_weight`` writes (``interface/convert_weight.py``, ``model/rwkv5/rwkv5_loader.py``):
the decay of RWKV-5 after its exponentials, what layers add to the residual stream halved, and float32 rounded to bfloat16.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import Field

from ..errors import UserError
from ..escaping import listed, quoted, shortened
from ..models import GENERATIONS
from ..quantization.group import GroupForm
from ..quantization.schemes import SCHEMES, FloatForm, Form, Scheme
from ..typed_json import Schema, read
from .checkpoint import Checkpoint, LazyTensor, Packed
from .converted import ADVICE, AGAIN, CHAT_CONFIG, Converted, Index, Located, ModelConfig, check_shard
from .huggingface import blinkdl_names
from .mlc_chat import read_numbered
from .rwkv_cpp import INVERSES

FORMAT = "mlc_llm"  # of such checkpoints
PARAMS = "params"
"""What mlc_chat's build calls such a folder, in one that is named for the model."""

INDICES = ("tensor-cache.json", "ndarray-cache.json")
KNOWN = {g.model_type: g.mlc_llm for g in GENERATIONS.values() if g.mlc_llm is not None}
"""What mlc_llm does to values, by the ``model_type`` of the generations that it has."""

POSITIONAL = re.compile(r"param_\d+")
HALVED = re.compile(r"model\.blocks\.(\d{1,9})\.(?:attention\.output|feed_forward\.value)\.weight")
VALUE = re.compile(r"(model\.blocks\.\d+\.feed_forward)\.value")


class ChatConfig(Schema):
    """What of ``mlc-chat-config.json`` the parameters depend on."""

    architecture: str | None = Field(default=None, alias="model_type")
    quantization: str | None = None
    mlc_config: ModelConfig | None = Field(default=None, alias="model_config")


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
    is_numbered = bool(stored) and all(POSITIONAL.fullmatch(tensor) for tensor in stored)
    converted = read_numbered(folder, stored) if is_numbered else _read_named(folder, stored)
    config, scheme, done = converted.config, converted.scheme, converted.done
    for shard in shards:
        check_shard(folder / shard.file, folder, shard)

    whole = _whole_tensors(folder, converted.tensors, scheme, config)
    tensors = {n: _with_blinkdl_values(n, tensor, done, config) for n, tensor in whole.items()}
    tensors = blinkdl_names(tensors)
    rounded = [tensor for tensor in converted.tensors.values() if tensor.entry.is_rounded]
    return Checkpoint(
        name=re.sub(f"-{scheme.name}(-MLC)?$", "", name),
        format=FORMAT,
        source=str(folder),
        tensors=tensors,
        files=[folder / shard.file for shard in shards],
        tokenizer_files=tokenizer_files,
        context_length=converted.context_length,
        layer_norm_epsilon=config.layer_norm_epsilon,
        rescale_every=config.rescale_every,
        stated=converted.stated,
        tokens=converted.tokens,
        quantization=scheme.name,
        warning=_loss(folder, rounded, done) if rounded else None,
    )


def _read_named(folder: Path, stored: Mapping[str, Located]) -> Converted:
    """Raises UserError for what mlc_llm converts and we do not know."""
    chat = read(ChatConfig, folder / CHAT_CONFIG, ADVICE, inside=folder)
    if chat.architecture not in KNOWN or chat.mlc_config is None:
        raise UserError(
            f"{folder / CHAT_CONFIG} is of the model type {quoted(chat.architecture)}; of mlc_llm's folders those of "
            f"{listed(KNOWN)} are read, with their model_config: {AGAIN}."
        )
    if chat.quantization not in SCHEMES:
        raise UserError(
            f"{folder} is in the quantization {quoted(chat.quantization)}, expected one of {', '.join(SCHEMES)}; {AGAIN}."
        )
    config = chat.mlc_config
    stated: dict[str, int | str] = {
        "model_type": chat.architecture,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "head_size": config.head_size,
    }
    return Converted(stored, config, SCHEMES[chat.quantization], KNOWN[chat.architecture], stated)


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
            if located.entry.dtype.startswith("uint"):
                raise UserError(
                    f"{folder} holds {shortened(name)} as {located.entry.dtype}, expected float weights; {ADVICE}."
                )
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

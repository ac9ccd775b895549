"""GGUF, llama.cpp's files of RWKV: a header of facts, the places of the tensors, and the tensors.

The format is that of ggml's ``docs/gguf.md``. The header is read here: the reader of the ``gguf`` package makes objects of
every token of a vocabulary, which takes seconds and 130 MB, and trusts what a file says of its own lengths.
"""

from __future__ import annotations

import dataclasses
import math
import re
import struct
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from gguf.constants import GGMLQuantizationType, GGUFValueType

from ..errors import UserError
from ..escaping import listed, quoted, shortened
from ..models import GENERATIONS
from ..models.block import transposed
from ..models.llama_cpp import OTHER_MODELS, LlamaCpp
from .checkpoint import LazyTensor, row_of
from .ggml import FORMATS, Format
from .huggingface import rename

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_AXES = 4
AGAIN = "convert or download it again"

SCALARS = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.BOOL: "<?",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
}

BLOCK = re.compile(r"blocks\.(\d{1,9})\.")
RESCALED = re.compile(r"blocks\.(\d{1,4})\.(?:att\.output|ffn\.value)\.weight")
"""What the converter divides where the residual stream is to be halved after every so many layers."""

SIZES = ("vocab_size", "embedding_length", "feed_forward_length", "block_count")
"""Facts that the tensors say too."""


class Stored(NamedTuple):
    offset: int
    shape: tuple[int, ...]
    elements: Format


class Gguf(NamedTuple):
    """``tensors`` under BlinkDL's names, and the epsilon of the layer norms."""

    tensors: dict[str, LazyTensor]
    layer_norm_epsilon: float | None


def read_gguf(path: Path) -> Gguf:
    """The tensors of a GGUF file with BlinkDL's shapes and values. Raises UserError for a damaged file, for one of several
    parts, for an architecture of no generation's, and for formats that are not in ``FORMATS``."""
    with open(path, "rb") as file:
        reader = _Reader(file, path)
        facts, stored = reader.facts_and_tensors()
    architecture = facts.get("general.architecture")
    layouts = {each.architecture: each for generation in GENERATIONS.values() if (each := generation.llama_cpp)}
    if not isinstance(architecture, str):
        raise UserError(f"{path} names no architecture; {AGAIN}.")
    if (layout := layouts.get(architecture)) is None:
        why = f", {OTHER_MODELS[architecture]}" if architecture in OTHER_MODELS else ""
        raise UserError(
            f"{path} is of the architecture {quoted(architecture)}{why}; what is read of GGUF is {listed(layouts)}."
        )

    def number(name: str) -> Any:
        value = facts.get(f"{architecture}.{name}", 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise UserError(f"{path} gives {name} as {quoted(value)}, expected a number of at least 0; {AGAIN}.")
        return value

    head_size, rescale = int(number("wkv.head_size")), int(number("rescale_every_n_layers"))
    epsilon = float(
        str(np.float32(number("attention.layer_norm_epsilon")))
    )  # 1e-5, where float32 has a number beside it
    lazy = {name: _lazy_tensor(path, *place) for name, place in stored.items()}
    tensors = _blinkdl_tensors(path, lazy, layout, head_size, rescale)
    _check_sizes(path, {name: number(name) for name in SIZES}, tensors)
    return Gguf(tensors, epsilon or None)


class _Reader:
    """Reads a header. Raises UserError for whatever is not as the format says, and for what reaches beyond the file's end."""

    def __init__(self, file: BinaryIO, path: Path):
        self.file, self.path, self.size = file, path, path.stat().st_size

    def refuse(self, problem: str) -> UserError:
        return UserError(f"{self.path} {problem}; {AGAIN}.")

    def take(self, count: int) -> bytes:
        if count > self.size - self.file.tell():
            raise self.refuse("is truncated or damaged")
        return self.file.read(count)

    def number(self, form: str) -> Any:
        (value,) = struct.unpack(form, self.take(struct.calcsize(form)))
        return value

    def text(self) -> str:
        try:
            return self.take(self.number("<Q")).decode()
        except UnicodeDecodeError:
            raise self.refuse("is damaged: a name in it is not UTF-8") from None

    def value(self, kind: int) -> Any:
        """One of the facts; arrays, such as a vocabulary, are passed over as None."""
        if kind in SCALARS:
            return self.number(SCALARS[GGUFValueType(kind)])
        if kind == GGUFValueType.STRING:
            return self.text()
        if kind != GGUFValueType.ARRAY:
            raise self.refuse(f"is damaged: it has a value of the unknown type {kind}")
        kind, count = self.number("<I"), self.number("<Q")
        if kind in SCALARS:
            self.skip(count * struct.calcsize(SCALARS[GGUFValueType(kind)]))
        elif kind == GGUFValueType.STRING:
            for _ in range(count):
                self.skip(self.number("<Q"))
        else:
            raise self.refuse(f"is damaged: it has a list of the unknown type {kind}")
        return None

    def skip(self, count: int) -> None:
        if count > self.size - self.file.tell():
            raise self.refuse("is truncated or damaged")
        self.file.seek(count, 1)

    def facts_and_tensors(self) -> tuple[dict[str, Any], dict[str, Stored]]:
        self.take(len(MAGIC))
        if (version := self.number("<I")) not in VERSIONS:
            raise self.refuse(f"is GGUF of version {version}, expected 2 or 3 (and little-endian)")
        tensors, values = self.number("<Q"), self.number("<Q")
        facts = {}
        for _ in range(values):
            name = self.text()
            facts[name] = self.value(self.number("<I"))
        if isinstance(parts := facts.get("split.count"), int) and parts > 1:
            raise UserError(f"{self.path} is one of {parts} parts; join them with llama-gguf-split --merge.")
        alignment = facts.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise self.refuse("is damaged: its alignment is no number of bytes")
        places = [self.place() for _ in range(min(tensors, self.size))]
        start = -(-self.file.tell() // alignment) * alignment
        stored: dict[str, Stored] = {}
        for name, place in places:
            if name in stored:
                raise self.refuse(f"is damaged: it holds {quoted(name)} twice")
            stored[name] = place._replace(offset=start + place.offset)
            if stored[name].offset + place.elements.nbytes(place.shape) > self.size:
                raise self.refuse(f"is truncated or damaged at {shortened(name)}")
        return facts, stored

    def place(self) -> tuple[str, Stored]:
        """The name of a tensor, and where it is after the header. ggml counts axes from the last."""
        name, axes = self.text(), self.number("<I")
        if not 0 < axes <= MOST_AXES:
            raise self.refuse(f"is damaged: {quoted(name)} has {axes} axes")
        shape = tuple(self.number("<Q") for _ in range(axes))[::-1]
        kind, offset = self.number("<I"), self.number("<Q")
        known = {int(form.kind): form for form in FORMATS.values()}
        if kind not in known:
            names = {int(k): k.name for k in GGMLQuantizationType}
            stored = names.get(kind, f"the unknown type {kind}")
            raise UserError(f"{self.path} holds {shortened(name)} in {stored}; what is read is {', '.join(FORMATS)}.")
        elements = known[kind]
        if min(shape) < 1 or shape[-1] % elements.block:
            raise self.refuse(f"is damaged: {shortened(name)} is {list(shape)} in {elements.name}")
        return name, Stored(offset, shape, elements)


def _lazy_tensor(path: Path, offset: int, shape: tuple[int, ...], elements: Format) -> LazyTensor:
    return LazyTensor(shape, elements.name, lambda: elements.read(path, offset, shape))


def _blinkdl_tensors(
    path: Path, stored: dict[str, LazyTensor], layout: LlamaCpp, head_size: int, rescale: int
) -> dict[str, LazyTensor]:
    result: dict[str, LazyTensor] = {}
    for name, tensor in stored.items():
        if not (name := rename(name, layout.names)):
            continue
        block, _, part = name.rpartition(".")
        if part in layout.transposed and len(tensor.shape) > 1:
            tensor = transposed(tensor)
        if part in layout.by_head and head_size and tensor.shape[-1] % head_size == 0:
            tensor = _reshaped(tensor, (prod(tensor.shape) // head_size, head_size))
        if (match := RESCALED.fullmatch(name)) and rescale > 0:
            tensor = _doubled(tensor, int(match[1]) // rescale)
        named, parts = {name: tensor}, layout.fused.get(part, ())
        if parts and tensor.shape[0] == len(parts):
            named = {f"{block}.{each}": row_of(tensor, i) for i, each in enumerate(parts)}
        if twice := named.keys() & result.keys():
            raise UserError(f"{path} holds {listed(sorted(twice))} twice, under two names; {AGAIN}.")
        result |= named
    return result


def _check_sizes(path: Path, stated: dict[str, float], tensors: dict[str, LazyTensor]) -> None:
    """Raises UserError for a header of other sizes than the tensors have; 0 leaves them to these."""
    found = {"block_count": 1 + max((int(match[1]) for match in map(BLOCK.match, tensors) if match), default=-1)}
    for name, sizes in (("emb.weight", SIZES[:2]), ("blocks.0.ffn.key.weight", SIZES[2:3])):
        if name in tensors:
            found |= dict(zip(sizes, tensors[name].shape))
    wrong = [
        f"{name} {stated[name]}, where its tensors have {size}"
        for name, size in found.items()
        if stated[name] not in (0, size)
    ]
    if wrong:
        raise UserError(f"{path} states {'; '.join(wrong)}; {AGAIN}.")


def _reshaped(tensor: LazyTensor, shape: tuple[int, ...]) -> LazyTensor:
    return dataclasses.replace(tensor, shape=shape, read=lambda: tensor.read().reshape(shape))


def _doubled(tensor: LazyTensor, times: int) -> LazyTensor:
    return dataclasses.replace(tensor, read=lambda: np.ldexp(tensor.read(), times))

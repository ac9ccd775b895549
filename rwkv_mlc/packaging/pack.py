"""What a program reads beside its code: tensors as its kernels want them, the vocabulary, and an index of both.

``rwkv_mlc/native/runner/pack.h`` shows the format."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from .. import __version__
from ..artifact import Artifact
from ..quantization.layouts import LAYOUTS
from ..schema import ParameterSpec
from ..tokenizer import END_OF_TEXT, Tokenizer

MARK = b"rwkv_mlc pack 1\n"
FOOTER = struct.Struct("<16sQQQ")
PAGE = 1 << 16  # bytes: the largest page of memory that a system maps files by
ALIGNMENT = 64  # of tensors
SLACK = 4096  # bytes that kernels may read after the last tensor


@dataclass(frozen=True)
class LevelCode:
    """Code for a kind of CPU: what its symbols begin with, and the features of the CPU that it needs, in LLVM's names."""

    name: str
    prefix: str
    features: Sequence[str]


class PackWriter:
    """Writes at the end of a file, whose first bytes may be a program."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self._pad(PAGE)
        self.start = file.tell()

    def write(
        self,
        artifact: Artifact,
        tokenizer: Tokenizer,
        parameters: Sequence[ParameterSpec],
        levels: Sequence[LevelCode],
        licenses: str,
    ) -> None:
        config, record = artifact.chat_config, artifact.record
        stored = artifact.stored_tensors()
        tensors = [self._tensor(spec, stored[spec.name][:]) for spec in parameters]
        states = {name: self._array(array) for name, array in artifact.initial_state().items()}
        self.file.write(bytes(SLACK))
        ends = {*tokenizer.end_ids, *config.eos_token_ids, *config.conv_template.stop_token_ids}
        index = {
            "version": f"{artifact.name}, packaged by rwkv_mlc {__version__}",
            "name": artifact.name,
            "source_sha256": record.source_sha256,
            "quantization": record.quantization,
            "levels": [vars(level) for level in levels],
            "begin_id": config.bos_token_id or END_OF_TEXT,
            "end_ids": sorted(ends),
            "vocabulary": self._bytes(_vocabulary(tokenizer.tokens)),
            "tensors": tensors,
            "initial_state": states,
            "chat_config": config.to_dict(),
            "licenses": licenses,
        }
        place = self._bytes(json.dumps(index, ensure_ascii=False).encode())
        size = self.file.tell() - self.start + FOOTER.size
        self.file.write(FOOTER.pack(MARK, size, place["offset"], place["nbytes"]))

    def _tensor(self, spec: ParameterSpec, array: np.ndarray) -> dict[str, Any]:
        return {"name": spec.name, "layout": spec.layout, **self._array(LAYOUTS[spec.layout].permute(array))}

    def _array(self, array: np.ndarray) -> dict[str, int]:
        self._pad(ALIGNMENT)
        return self._bytes(np.ascontiguousarray(array).data.cast("B"))

    def _bytes(self, data: bytes | memoryview) -> dict[str, int]:
        place = {"offset": self.file.tell() - self.start, "nbytes": len(data)}
        self.file.write(data)
        return place

    def _pad(self, multiple: int) -> None:
        self.file.write(bytes(-self.file.tell() % multiple))


def _vocabulary(tokens: Mapping[int, bytes]) -> bytes:
    found = sorted((data, token) for token, data in tokens.items() if data)
    return b"".join(struct.pack("<II", token, len(data)) + data for data, token in found)

"""Dumps: every named value of a prefill and of some single tokens after it, on disk as safetensors with a JSON header.

Tensors are named by call and place, ``prefill/blocks.3.att.wkv`` or ``decode.0/logits``, one row a token ([T, C]); of
``ln_out`` and ``logits`` there is the last token's row only; ``blocks.3.state.att_kv`` is the state after the call.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ..artifact.disk import staging, write_json
from ..config import RWKVConfig
from ..errors import UserError
from ..models.values import LAST_ROW, RESIDUAL, place, values

FORMAT = "rwkv_mlc dump 1"
HEADER, TENSORS = "dump.json", "tensors.safetensors"

ACTIVATIONS = ("float64", "float32", "float16", "int8")

Step = Callable[[Sequence[int], bool], Mapping[str, np.ndarray]]
"""(tokens, single) -> values and states by name: one call, which goes on from the state of the one before. ``single``
says that it is to decode one token, not to prefill."""


@dataclass(frozen=True)
class Recipe:
    """What is fed: ``tokens`` in prefills of up to ``chunk``, then ``decodes`` single tokens: the same again from the first
    on, so that they do not depend on what a model answers."""

    tokens: Sequence[int] = (1,) * 10
    decodes: int = 2
    chunk: int = 512

    @property
    def decoded(self) -> list[int]:
        return [self.tokens[i % len(self.tokens)] for i in range(self.decodes)]

    def check(self, config: RWKVConfig) -> None:
        """Raises UserError for no tokens, or ids outside the vocabulary."""
        if not self.tokens or not 0 <= min(self.tokens) <= max(self.tokens) < config.vocab_size:
            found = f"{min(self.tokens)} to {max(self.tokens)}" if self.tokens else "none"
            raise UserError(f"A dump needs token ids between 0 and {config.vocab_size - 1}, found {found}.")
        if self.decodes < 0 or self.chunk < 1:
            raise UserError(
                f"A dump cannot have {self.decodes} decodes after chunks of {self.chunk} tokens; give at least 0 and 1."
            )


@dataclass(frozen=True)
class Header:
    """``source`` is "library", "reference" or "rwkv"; ``sha256`` that of the checkpoint's bytes; ``activations`` what the
    values were computed in: float64, float32, float16, or int8 in the products of a prefill; ``kernels`` name what
    computed a tensor; ``notes`` are for the reader of a comparison."""

    source: str
    name: str
    sha256: str
    model_config: dict[str, Any]
    quantization: str | None
    activations: str
    tokens: list[int]
    decoded: list[int]
    chunk: int
    target: str | None = None
    device: str | None = None
    kernels: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def config(self) -> RWKVConfig:
        return RWKVConfig.from_dict(self.model_config)

    @property
    def calls(self) -> list[str]:
        return ["prefill", *(f"decode.{i}" for i in range(len(self.decoded)))]

    @property
    def borders(self) -> list[int]:
        """The rows of the prefill with which a new chunk begins, but for the first."""
        return list(range(self.chunk, len(self.tokens), self.chunk))


@dataclass(frozen=True)
class Dump:
    """``tensors`` are in the order of execution."""

    header: Header
    tensors: dict[str, np.ndarray]

    def unscaled(self) -> Dump:
        """The dump of the same model without ``rescale_every``."""
        config = self.header.config
        if not config.rescale_every:
            return self

        def of(name: str, array: np.ndarray) -> np.ndarray:
            layer, role = place(name.partition("/")[2])
            return array.astype(np.float64) * 2.0 ** config.halvings(layer) if role in RESIDUAL else array

        return Dump(self.header, {name: of(name, array) for name, array in self.tensors.items()})

    def write(self, folder: Path) -> None:
        """Appears whole or not at all; takes the place of an older dump. Raises UserError where something else is."""
        if folder.exists() and not (folder / HEADER).is_file():
            raise UserError(f"{folder} is there and is no dump; name a new folder with --out.")
        header = {"format": FORMAT, **dataclasses.asdict(self.header)}
        listed = {name: [str(array.dtype), *array.shape] for name, array in self.tensors.items()}
        with staging(folder) as staged:
            save_file({name: np.ascontiguousarray(a) for name, a in self.tensors.items()}, staged / TENSORS)
            write_json(staged / HEADER, {**header, "tensors": listed})

    @classmethod
    def read(cls, folder: Path) -> Dump:
        """Raises UserError for a folder that is no dump, or a damaged one."""
        try:
            header = json.loads((folder / HEADER).read_text(encoding="utf-8"))
            if header.pop("format") != FORMAT:
                raise ValueError("another format")
            listed = header.pop("tensors")
            stored = load_file(folder / TENSORS)
            dump = cls(Header(**header), {name: stored[name] for name in listed})
            dump._check()
        except FileNotFoundError:
            raise UserError(f"{folder} is no dump; name a folder written by rwkv-mlc dump.") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError, UserError) as error:
            raise UserError(f"The dump {folder} cannot be read ({error}); write it again with rwkv-mlc dump.") from None
        for name, array in dump.tensors.items():
            if [str(array.dtype), *array.shape] != listed[name]:
                raise UserError(f"The dump {folder} is damaged: {name} does not have its shape; write it again.")
        return dump

    def _check(self) -> None:
        """Raises TypeError, ValueError or UserError for what no dump holds."""
        header, config = self.header, self.header.config
        Recipe(header.tokens, len(header.decoded), header.chunk).check(config)
        if header.activations not in ACTIVATIONS or not isinstance(header.notes, list):
            raise ValueError(f"unknown activations {header.activations}")
        known = {f"{call}/{name}" for call in header.calls for name in values(config)}
        if unknown := self.tensors.keys() - known:
            raise ValueError(f"unknown value {min(unknown)}")


def record(config: RWKVConfig, recipe: Recipe, step: Step) -> dict[str, np.ndarray]:
    """All values by call and name, in the order of execution. Raises UserError as ``Recipe.check``."""
    recipe.check(config)
    tensors = {}
    for call, found in _calls(recipe, step):
        tensors |= {f"{call}/{name}": found[name] for name in values(config) if name in found}
    return tensors


def _calls(recipe: Recipe, step: Step) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    starts = range(0, len(recipe.tokens), recipe.chunk)
    yield "prefill", _joined([step(recipe.tokens[start : start + recipe.chunk], False) for start in starts])
    for i, token in enumerate(recipe.decoded):
        yield f"decode.{i}", _joined([step([token], True)])


def _joined(chunks: list[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The values of several prefills one after the other as those of one."""

    def joined(name: str) -> np.ndarray:
        if ".state." in name:
            return chunks[-1][name]
        return chunks[-1][name][-1:] if name in LAST_ROW else np.concatenate([chunk[name] for chunk in chunks])

    return {name: joined(name) for name in chunks[-1]}

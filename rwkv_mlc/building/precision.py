"""Which values of a model float16 does not hold: what a build keeps in float32 for targets that compute in float16."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import reference
from ..config import RWKVConfig
from ..data_files import ROOT
from ..errors import UserError
from ..escaping import quoted
from ..models import generation_of
from ..models.values import LARGEST_FLOAT16
from ..tokenizer import load_tokenizer

MARGIN = 4.0  # how much further another text may reach


def float32_patterns(config: RWKVConfig, layers: Sequence[int], roles: Sequence[str]) -> list[str]:
    """``RWKVConfig.float32`` for whole layers and for roles, such as ``ffn.key``, of every layer; a matrix takes what it
    reads along. Raises UserError for a layer or role that the model does not have."""
    generation, layer_numbers = generation_of(config), range(config.num_hidden_layers)
    known = {role.name: role for layer in layer_numbers for role in generation.block_roles(config, layer)}
    for layer in layers:
        if not 0 <= layer < config.num_hidden_layers:
            raise UserError(
                f"There is no layer {layer} to keep in float32; the last one is {config.num_hidden_layers - 1}."
            )
    for role in roles:
        if role not in known:
            raise UserError(f"There is no {quoted(role)} to keep in float32; valid are {', '.join(known)}.")
    read = [name for role in roles if known[role].operation == "matrix product" for name in known[role].inputs]
    return [*(f"blocks.{layer}.*" for layer in layers), *(f"blocks.*.{name}" for name in (*roles, *read))]


@dataclass(frozen=True)
class WideValue:
    """A value and the largest magnitude that it reached."""

    name: str
    largest: float

    @property
    def overflows(self) -> bool:
        return self.largest > LARGEST_FLOAT16


def calibration_tokens(vocabulary: list[Path], vocab_size: int) -> list[int]:
    """The lines of ``configs/calibration.txt`` as far as the vocabulary has their characters; some tokens of it where it has
    none of them."""
    tokenizer, tokens = load_tokenizer(vocabulary), []
    for line in (ROOT / "calibration.txt").read_text(encoding="utf-8").splitlines(keepends=True):
        with contextlib.suppress(UserError):
            tokens += tokenizer.encode(line)
    return tokens or list(range(min(64, vocab_size)))


def wide_values(
    config: RWKVConfig, parameters: Mapping[str, np.ndarray], tokens: Sequence[int], narrow: Collection[str]
) -> list[WideValue]:
    """The values among ``narrow`` that leave float16's range while the reference reads ``tokens``, or come within a factor
    of ``MARGIN`` of it, in the order in which they are computed.

    The others are rounded to float16 on the way, as the target does; these go on as they are, as they will in float32, so
    that one reading finds all."""
    found: list[WideValue] = []

    def judge(name: str, value: np.ndarray) -> np.ndarray:
        if name not in narrow:
            return value
        largest = float(np.abs(value).max())
        if largest * MARGIN <= LARGEST_FLOAT16:
            return value.astype(np.float16).astype(value.dtype)
        found.append(WideValue(name, largest))
        return value

    reference.forward(config, parameters, tokens, trace=judge, dtype=np.float32)
    return found

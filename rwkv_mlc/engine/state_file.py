"""Recurrent states in files: safetensors, with the model's identity in the header."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..artifact import Artifact
from ..artifact.disk import beside
from ..errors import UserError
from ..escaping import shortened
from ..numerals import integer
from ..regular_files import size_of
from .sampler import Counts

FORMAT = "rwkv_mlc state 1"
LOGITS, IDS, COUNTS = "logits", "counted_ids", "counts"
"""Tensors beside those of the state; files of earlier versions have none of them."""


@dataclass(frozen=True)
class SavedState:
    """``arrays`` of a state of one sequence by name, float32 [1, ...]; the ``logits`` after its last token, float32 [V], None
    where nobody kept them; where that was one of an answer, the ``counts`` of its tokens; and how many tokens it has read, its
    ``length``, 0 where nobody counted."""

    arrays: Mapping[str, np.ndarray]
    logits: np.ndarray | None = None
    counts: Counts = field(default_factory=Counts)
    length: int = 0


def save_state(path: Path | str, artifact: Artifact, state: SavedState) -> None:
    """The file appears whole or not at all. Raises UserError when it cannot be written."""
    tensors = dict(state.arrays)
    if state.logits is not None:
        tensors |= {LOGITS: np.ascontiguousarray(state.logits), IDS: state.counts.ids, COUNTS: state.counts.counts}
    metadata = {
        "format": FORMAT,
        "model": artifact.record.source_sha256,
        "name": artifact.name,
        "quantization": artifact.scheme.name,
        "tokens": str(state.length),
    }
    try:
        with beside(Path(path)) as partial:
            partial.write_bytes(_in_order(save(tensors, metadata)))  # save_file would replace a device
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"The state cannot be written to {path}: {error}.") from None


def _in_order(file: bytes) -> bytes:
    """A safetensors file with the keys of its metadata in alphabetical order, which the library leaves to chance, so that
    the same state is the same bytes."""
    end = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + file[end:]


def load_state(
    path: Path | str, artifact: Artifact, shapes: Mapping[str, tuple[int, ...]], vocab_size: int
) -> SavedState:
    """The arrays in the order of ``shapes``. A state of the same checkpoint in another quantization is accepted.

    Raises UserError for a file that is no state, and for a state of another model."""
    with _opened(path) as file:
        metadata = file.metadata()
        if metadata.get("model") != artifact.record.source_sha256:
            maker = shortened(str(metadata.get("name")))
            raise UserError(
                f"{path} is a state of {maker}, another model than {artifact.name}; a state means something only to "
                "the model that made it."
            )
        expected = {name: (shape, "F32") for name, shape in shapes.items()}
        if LOGITS in file.keys():  # noqa: SIM118  it is no dictionary
            (count,) = file.get_slice(IDS).get_shape()[:1] or (0,)
            counted = min(count, vocab_size)
            expected |= {LOGITS: ((vocab_size,), "F32"), IDS: ((counted,), "I32"), COUNTS: ((counted,), "F32")}
        slices = {name: file.get_slice(name) for name in expected}
        if {name: (tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()} != expected:
            raise UserError(f"The state {path} does not have this model's shapes; it is damaged.")
        arrays = {name: file.get_tensor(name) for name in expected}
    states = {name: arrays.pop(name) for name in shapes}
    try:
        length = integer(metadata.get("tokens", "0"))
    except ValueError:
        raise UserError(f"The state {path} does not say how many tokens it has read; it is damaged.") from None
    if not arrays:
        return SavedState(states, length=length)
    return SavedState(states, arrays[LOGITS], _counts(path, arrays, vocab_size), length)


def check_state(path: Path | str) -> None:
    """Raises UserError for a file that is no state of any model."""
    with _opened(path):
        pass


@contextlib.contextmanager
def _opened(path: Path | str) -> Iterator[Any]:
    """The file of a state, as safetensors opens it. Raises UserError where it is none, and where reading it fails."""
    try:
        size_of(Path(path))
        with safe_open(path, "numpy") as file:
            if (file.metadata() or {}).get("format") != FORMAT:
                raise UserError(f"{path} holds no saved state; give a file written by /save or --save-state.")
            yield file
    except OSError as error:
        raise UserError(f"The state {path} cannot be read: {error.strerror or error}.") from None
    except SafetensorError as error:
        raise UserError(
            f"The state {path} cannot be read ({shortened(str(error))}); give a file written by /save or --save-state."
        ) from None


def _counts(path: Path | str, arrays: Mapping[str, np.ndarray], vocab_size: int) -> Counts:
    ids, counts = arrays[IDS], arrays[COUNTS]
    if len(np.unique(ids)) < len(ids) or not np.all((ids >= 0) & (ids < vocab_size)) or not np.all(counts > 0):
        raise UserError(f"The state {path} counts tokens that cannot have been chosen; it is damaged.")
    return Counts(ids, counts)

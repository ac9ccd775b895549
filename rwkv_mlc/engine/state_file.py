"""Recurrent states in files: safetensors, with the model's identity in the header."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..artifact import Artifact
from ..artifact.disk import beside
from ..errors import UserError
from ..escaping import shortened
from ..regular_files import size_of

FORMAT = "rwkv_mlc state 1"


def save_state(path: Path | str, artifact: Artifact, names: Sequence[str], arrays: Sequence[np.ndarray]) -> None:
    """Write named arrays, float32; the file appears whole or not at all. Raises UserError when it cannot be written."""
    metadata = {
        "format": FORMAT,
        "model": artifact.record.source_sha256,
        "name": artifact.name,
        "quantization": artifact.scheme.name,
    }
    try:
        with beside(Path(path)) as partial:
            partial.write_bytes(save(dict(zip(names, arrays)), metadata))  # save_file would replace a device
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"The state cannot be written to {path}: {error}.") from None


def load_state(
    path: Path | str, artifact: Artifact, names: Sequence[str], shapes: Sequence[tuple[int, ...]]
) -> list[np.ndarray]:
    """The arrays in the order of ``names``. A state of the same checkpoint in another quantization is accepted.

    Raises UserError for a file that is no state, and for a state of another model."""
    try:
        size_of(Path(path))
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise UserError(f"{path} holds no saved state; give a file written by /save or Engine.save_state.")
            if metadata.get("model") != artifact.record.source_sha256:
                maker = shortened(str(metadata.get("name")))
                raise UserError(
                    f"{path} is a state of {maker}, another model than {artifact.name}; a state means something only to "
                    "the model that made it."
                )
            found = [file.get_slice(name) for name in names]
            if [(tuple(entry.get_shape()), entry.get_dtype()) for entry in found] != [
                (shape, "F32") for shape in shapes
            ]:
                raise UserError(f"The state {path} does not have this model's shapes; it is damaged.")
            return [file.get_tensor(name) for name in names]
    except OSError as error:
        raise UserError(f"The state {path} cannot be read: {error.strerror or error}.") from None
    except SafetensorError as error:
        raise UserError(f"The state {path} cannot be read: {shortened(str(error))}.") from None

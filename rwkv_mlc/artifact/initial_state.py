"""The state before the first token, where a file gives it in place of the library's constants."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..errors import UserError
from ..escaping import shortened
from ..schema import InitialState
from .disk import beside, digest
from .names import INITIAL_STATE

AGAIN = "write it again with rwkv-mlc gen-config --state FILE"


def write_initial_state(folder: Path, arrays: Mapping[str, np.ndarray], source: str) -> InitialState:
    """Write float32 [*shape] by ``StateSpec.name`` into ``folder``; ``source`` is the file that they came from."""
    with beside(folder / INITIAL_STATE) as partial:
        partial.write_bytes(save(dict(arrays)))
    return InitialState(file=INITIAL_STATE, source=source, sha256=digest(folder / INITIAL_STATE, "sha256"))


def read_initial_state(path: Path, state: InitialState) -> dict[str, np.ndarray]:
    """What ``write_initial_state`` has written. Raises UserError for a file that is damaged."""
    if digest(path, "sha256") != state.sha256:
        raise UserError(f"The initial state {path} is damaged: its checksum differs; {AGAIN}.")
    try:
        with safe_open(path, "numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dictionary
    except SafetensorError as error:
        raise UserError(f"The initial state {path} cannot be read: {shortened(str(error))}; {AGAIN}.") from None

"""The logits of a text, written to a file as they are computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..artifact.disk import beside
from ..errors import UserError
from .engine import Engine
from .sequence import Tokens


def write_logits(engine: Engine, tokens: Tokens, path: Path, *, one_by_one: bool = False) -> None:
    """Write the logits after every token to ``path``, a .npy file of float32 [T, V]. ``one_by_one`` feeds the tokens as in
    generation. Raises UserError for an id outside the vocabulary and where the file cannot be written."""
    state = engine.new_state()
    rows = (engine.decode(token, state) for token in tokens) if one_by_one else engine.score(tokens, state)
    header = {"descr": "<f4", "fortran_order": False, "shape": (len(tokens), engine.config.vocab_size)}
    try:
        with beside(path) as partial, open(partial, "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for logits in rows:
                file.write(np.ascontiguousarray(logits, "<f4").data)
    except OSError as error:
        raise UserError(f"The logits cannot be written to {path}: {error.strerror}.") from None

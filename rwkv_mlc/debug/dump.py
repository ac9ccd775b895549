"""Dumps: every named value of a prefill and of some single tokens after it, on disk as safetensors with a JSON header.

Tensors are named by call and place, ``prefill/blocks.3.att.wkv`` or ``decode.0/logits``, one row a token ([T, C]); of
``ln_out`` and ``logits`` there is the last token's row only; ``blocks.3.state.att_kv`` is the state after the call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ..artifact.disk import staging, write_json, writing
from ..config import RWKVConfig
from ..errors import UserError
from ..escaping import shortened
from ..models import generation_of
from ..models.values import LAST_ROW, place
from ..regular_files import check_inside
from ..schema import DumpFile, DumpHeader
from ..typed_json import read
from .recipe import Recipe

HEADER, TENSORS = "dump.json", "tensors.safetensors"

Step = Callable[[Sequence[int], bool], Mapping[str, np.ndarray]]
"""(tokens, single) -> values and states by name: one call, which goes on from the state of the one before. ``single``
says that it is to decode one token, not to prefill."""


@dataclass(frozen=True)
class Dump:
    """``tensors`` are in the order of execution."""

    header: DumpHeader
    tensors: dict[str, np.ndarray]

    def unscaled(self) -> Dump:
        """The dump of the same model without ``rescale_every``."""
        config = self.header.config
        if not config.rescale_every:
            return self

        graph = generation_of(config).values(config)

        def of(name: str, array: np.ndarray) -> np.ndarray:
            value = graph[name.partition("/")[2]]
            layer, _ = place(value.name)
            if layer is None or not value.rescaled:
                return array
            return array.astype(np.float64) * 2.0 ** config.halvings(layer)

        return Dump(self.header, {name: of(name, array) for name, array in self.tensors.items()})

    def write(self, folder: Path) -> None:
        """Appears whole or not at all; takes the place of an older dump. Raises UserError where something else is."""
        check_folder(folder)
        forms = {name: _form(array) for name, array in self.tensors.items()}
        with staging(folder) as staged:
            try:
                save_file({name: np.ascontiguousarray(a) for name, a in self.tensors.items()}, staged / TENSORS)
            except SafetensorError as error:  # what it makes of a full disk
                raise UserError(f"The dump cannot be written to {folder} ({error}); free some space.") from None
            write_json(staged / HEADER, DumpFile(**dict(self.header), tensors=forms).to_dict())

    @classmethod
    def read(cls, folder: Path) -> Dump:
        """Raises UserError for a folder that is no dump, or a damaged one."""
        advice = "write it again with rwkv-mlc dump"
        if not (folder / HEADER).is_file() or not (folder / TENSORS).is_file():
            raise UserError(f"{folder} is no dump; name a folder written by rwkv-mlc dump.")
        file = read(DumpFile, folder / HEADER, advice, inside=folder)
        layers = file.config.num_hidden_layers
        if layers > len(file.tensors):
            raise UserError(f"The dump {folder} has {layers} layers and {len(file.tensors)} values; {advice}.")
        try:
            check_inside(folder / TENSORS, folder)
            stored = load_file(folder / TENSORS)
        except OSError as error:
            raise UserError(f"The dump {folder} cannot be read ({error.strerror or error}); {advice}.") from None
        except (SafetensorError, ValueError) as error:  # ValueError is NumPy's, for a tensor of more axes than it has
            raise UserError(f"The dump {folder} cannot be read ({shortened(str(error))}); {advice}.") from None
        header = file.header
        graph = generation_of(header.config).values(header.config)
        calls = set(header.calls)
        places = ((name, *name.partition("/")[::2]) for name in file.tensors)
        if unknown := [name for name, call, value in places if call not in calls or value not in graph]:
            raise UserError(f"The dump {folder} holds the unknown value {shortened(min(unknown))}; {advice}.")
        for name, form in file.tensors.items():
            if name not in stored or _form(stored[name]) != form:
                raise UserError(f"The dump {folder} is damaged: {name} does not have its shape; {advice}.")
        return cls(header, {name: stored[name] for name in file.tensors})


def check_folder(folder: Path) -> None:
    """Raises UserError where a dump cannot be written: before the work."""
    if folder.exists() and not (folder / HEADER).is_file():
        raise UserError(f"{folder} is there and is no dump; name a new folder with --out.")
    with writing(folder):
        pass


def _form(array: np.ndarray) -> tuple[str | int, ...]:
    return (str(array.dtype), *array.shape)


def record(config: RWKVConfig, recipe: Recipe, step: Step) -> dict[str, np.ndarray]:
    """All values by call and name, in the order of execution. Raises UserError as ``Recipe.check``."""
    recipe.check(config)
    tensors: dict[str, np.ndarray] = {}
    graph = generation_of(config).values(config)
    for call, found in _calls(recipe, step):
        tensors |= {f"{call}/{name}": found[name] for name in graph if name in found}
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

"""What a compiled library and an artifact say of themselves, as types: all that another implementation has to read.

Every reader goes through ``parse``, whose errors name the file, the entry and what was expected there. docs/artifact.md is
written from these types.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import UserError

Count = Annotated[int, Field(ge=0)]
Extent = Annotated[int, Field(ge=1)]


class Schema(BaseModel):
    """Base of all: immutable, exact in its types; keys that it does not know are passed over, so that a file written by a
    newer version stays readable."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", populate_by_name=True)


class ParameterSpec(Schema):
    """A stored tensor as the compiled functions take it: ``shape`` and ``dtype`` in memory, after ``layout``
    (``quantization.layouts``) has permuted what the shards hold under ``name``."""

    name: str
    shape: tuple[Extent, ...]
    dtype: str
    layout: str


class StateSpec(Schema):
    """One tensor of the recurrent state, [slots, *shape], filled with ``initial`` before the first token."""

    layer: Count
    role: str
    shape: tuple[Extent, ...]
    dtype: str = "float32"
    initial: float = 0.0

    @property
    def name(self) -> str:
        return f"blocks.{self.layer}.{self.role}"


class TensorSpec(Schema):
    """An argument or a result of a function; an extent is a number or a name, which stands for the same number wherever it
    occurs in a call."""

    name: str
    shape: tuple[Extent | str, ...]
    dtype: str


class FunctionSpec(Schema):
    """A function of a library: its arguments in order. ``states`` and ``params`` stand for the tuples of all tensors of that
    kind, in the order of the metadata."""

    arguments: tuple[TensorSpec | str, ...]
    result: TensorSpec


Schema_ = TypeVar("Schema_", bound=Schema)


def parse(kind: type[Schema_], text: str | bytes, path: Path | str, advice: str) -> Schema_:
    """JSON text as ``kind``. Raises UserError: "``path`` ... ; ``advice``."."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise UserError(f"{path}: {place}: {first['msg']}; {advice}.") from None

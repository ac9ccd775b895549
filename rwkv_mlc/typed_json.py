"""JSON files as types: the base of all schemas, and one sentence for whatever does not fit."""

from __future__ import annotations

import reprlib
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from .errors import UserError
from .escaping import CONTROL, listed, shortened
from .regular_files import check_inside, read_bytes
from .text_encoding import in_utf8

LARGEST_FILE = 16 << 20  # bytes; the index of the largest models has one of them
MOST_ERRORS = 1000  # that are looked at


class Schema(BaseModel):
    """Base of all: immutable, exact in its types; keys that it does not know are passed over, so that a file written by a
    newer version stays readable."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="ignore", populate_by_name=True, defer_build=True, allow_inf_nan=False
    )

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return self.model_dump(mode="json", by_alias=True)


def file_name(text: str) -> str:
    """The text. Raises ValueError where it is not a plain name on every system."""
    is_plain = text not in ("", "..") and all(kind(text).name == text for kind in (PurePosixPath, PureWindowsPath))
    if not is_plain or CONTROL.search(text) or len(text.encode()) > LONGEST_NAME:
        raise ValueError("the name of a file in the same folder")
    return text


LONGEST_NAME = 200  # bytes; file systems take 255, and what is written beside a file has a longer name


LARGEST = (1 << 31) - 1
Count = Annotated[int, Field(ge=0, le=LARGEST)]
Extent = Annotated[int, Field(ge=1, le=LARGEST)]
Bytes = Annotated[int, Field(ge=0, le=(1 << 63) - 1)]
FileName = Annotated[str, AfterValidator(file_name)]
"""The name of a file in the same folder, without a path."""

EXPECTED = {
    "string_type": "a string",
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "dataclass_type": "an object",
    "literal_error": "{expected}",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "too_short": "at least {min_length} entries",
    "string_too_short": "at least {min_length} characters",
    "too_long": "at most {max_length} entries",
    "value_error": "{error}",
}
"""What was expected, by pydantic's type of an error and filled in from its context; others are in pydantic's words."""

T = TypeVar("T")


def read(
    kind: type[T], path: Path, advice: str, extra: Literal["forbid"] | None = None, inside: Path | None = None
) -> T:
    """The JSON file ``path`` as ``kind``. Raises UserError for one that is missing, cannot be read or does not fit, which
    ends in ``advice``; where ``extra`` is "forbid", for one with keys that are not known, too; and for a link out of the
    folder ``inside``, whose files come together."""
    try:
        if inside is not None:
            check_inside(path, inside)
        text = in_utf8(read_bytes(path, LARGEST_FILE), path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {advice}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {advice}.") from None
    return parse(kind, text, path, advice, extra)


def parse(
    kind: type[T], text: str | bytes, source: Path | str, advice: str, extra: Literal["forbid"] | None = None
) -> T:
    """JSON text as ``kind``. Raises UserError: what ``source`` gives and what was expected there, and ``advice``."""
    try:
        return TypeAdapter(kind).validate_json(text, extra=extra)
    except ValidationError as error:
        raise UserError(f"{source} {_found(error, text)}; {advice}.") from None


def _found(error: ValidationError, text: str | bytes) -> str:
    if error.error_count() > MOST_ERRORS:
        return f"has {error.error_count():,} values that do not fit"
    errors = error.errors(include_url=False)
    first, data = errors[0], None if errors[0]["type"] == "json_invalid" else from_json(text)
    context = first.get("ctx", {})
    if first["type"] == "json_invalid":
        return f"is not JSON ({context['error']})"
    if first["type"] == "missing":
        missing = [_place(each["loc"], data) for each in errors if each["type"] == "missing"]
        return f"lacks {listed(missing)}"
    if first["type"] == "extra_forbidden":
        return f"has a key {_place(first['loc'], data)}, which means nothing"
    if first["type"] in EXPECTED:
        expected = EXPECTED[first["type"]].format(**context)
    else:
        expected = first["msg"].removeprefix("Input should be ")
    if not first["loc"] and first["type"] == "value_error":
        return expected
    if not first["loc"]:
        return f"holds a {type(first['input']).__name__}, expected {expected}"
    return f"gives {_place(first['loc'], data)} as {reprlib.repr(first['input'])}, expected {expected}"


def _place(location: tuple[int | str, ...], data: Any) -> str:
    """``records[0].records[3].shape``. Steps that the data have not are names of alternatives, but for the last one, which may
    be missing in an object."""
    place = ""
    for number, step in enumerate(location, 1):
        if isinstance(step, int):
            place += f"[{step}]"
            data = data[step] if isinstance(data, list) and step < len(data) else None
        elif isinstance(data, dict) and (step in data or number == len(location)):
            place += f".{shortened(step)}"
            data = data.get(step)
        elif isinstance(data, list) and step.isidentifier():  # of what is read from a list of names
            place += f".{shortened(step)}"
            data = None
    return place.removeprefix(".")

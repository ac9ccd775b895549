"""Functions that a model is offered, and calls in its answers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, TypeAdapter, ValidationError

from ..schema import ToolUse
from ..typed_json import read


def tool_name(tool: dict[str, Any]) -> str:
    """The name of a function, which may be described as OpenAI's API has it, under the key "function". Raises ValueError for
    one without."""
    described = tool.get("function", tool)
    name = described.get("name") if isinstance(described, dict) else None
    if not isinstance(name, str) or not name:
        raise ValueError('a function with a "name"')
    return name


def _named(tool: dict[str, Any]) -> dict[str, Any]:
    tool_name(tool)
    return tool


Tool = Annotated[dict[str, Any], AfterValidator(_named)]
"""A function that a model is offered, in JSON's types: its name and whatever else there is to say of it."""


def read_tools(path: Path) -> list[dict[str, Any]]:
    """The functions of a JSON file, a list of objects. Raises UserError for one that is something else."""
    return read(list[Tool], path, "give a JSON list of functions, each an object with a name")


@dataclass(frozen=True)
class ToolCall:
    """A call of the function ``name`` with ``arguments`` by their names."""

    name: str
    arguments: dict[str, Any]


def calls_in(text: str, form: ToolUse) -> list[ToolCall]:
    """The calls in an answer, in order: what stands between the marks of ``form`` and is a name with arguments. An answer may
    end before the closing mark; other JSON between marks is text."""
    marked = re.compile(rf"{re.escape(form.call_begin)}(.*?)(?:{re.escape(form.call_end)}|\Z)", re.DOTALL)
    calls = []
    for match in marked.finditer(text):
        try:
            calls.append(TypeAdapter(ToolCall).validate_json(match[1], strict=True))
        except ValidationError:
            continue
    return calls

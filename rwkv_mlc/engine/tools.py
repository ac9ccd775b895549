"""Functions that a model calls in its answers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..schema import ToolUse


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

"""Writes the tables of ``docs/artifact.md`` from the types of ``rwkv_mlc/schema.py``: one between each pair of marks, which
name the type. The text below a field in the source is its meaning."""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from rwkv_mlc import schema

PAGE = ROOT / "docs" / "artifact.md"
MARKS = re.compile(r"<!-- (\w+): begin -->\n.*?<!-- \1: end -->", re.DOTALL)


def page(text: str) -> str:
    """The page with its tables written anew."""
    return MARKS.sub(lambda match: f"<!-- {match[1]}: begin -->\n{section(match[1])}<!-- {match[1]}: end -->", text)


def section(name: str) -> str:
    """What a type is for, and a row for each of its fields."""
    kind = getattr(schema, name)
    fields = TypeAdapter(kind).json_schema()
    fields = fields.get("$defs", {}).get(fields.get("$ref", "").rpartition("/")[2], fields)
    about, meanings = texts(kind)
    names = dict(zip(fields["properties"], meanings, strict=True)) if "properties" in fields else {}
    lines = [about, "", "| field | type | meaning |", "|---|---|---|"]
    for key, form in fields.get("properties", {}).items():
        meaning = meanings[names[key]]
        if key not in fields.get("required", ()):
            meaning = f"{meaning} {default(form)}".strip()
        lines.append(f"| `{key}` | {type_of(form)} | {meaning} |")
    for position, (key, form) in enumerate(zip(meanings, fields.get("prefixItems", ()))):
        lines.append(f"| entry {position}, {key} | {type_of(form)} | {meanings[key]} |")
    return "\n".join(lines) + "\n"


def texts(kind: type) -> tuple[str, dict[str, str]]:
    """The docstring of a class, and the text below each of its fields, in order, with those of its base first."""
    base = kind.__base__
    meanings = texts(base)[1] if base.__module__ == kind.__module__ else {}
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body
    for node, after in zip(body, [*body[1:], None]):
        if isinstance(node, ast.AnnAssign):
            has_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            meanings[node.target.id] = flat(after.value.value) if has_text else ""
    return flat(inspect.getdoc(kind)), meanings


def flat(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("``", "`")).strip()


def default(form: dict[str, Any]) -> str:
    """What a field that may be missing stands for."""
    value = form.get("default")
    return "May be missing." if value is None else f"`{json.dumps(value)}` where missing."


def type_of(form: dict[str, Any]) -> str:
    """A JSON schema in words."""
    if "$ref" in form:
        name = form["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in form:
        missing = "default" in form and form["default"] is None  # no file has null for what is missing
        kinds = [each for each in form["anyOf"] if not missing or each.get("type") != "null"]
        return " or ".join(map(type_of, kinds))
    if "const" in form:
        return f"`{json.dumps(form['const'])}`"
    if "enum" in form:
        return " or ".join(f"`{json.dumps(value)}`" for value in form["enum"])
    if form.get("type") == "array" and "prefixItems" in form:
        return f"[{', '.join(type_of(each) for each in form['prefixItems'])}]"
    if form.get("type") == "array":
        return f"list of {plural(form['items'])}"
    if form.get("type") == "object":
        values = form["additionalProperties"]
        return f"object of {plural(values)}" if isinstance(values, dict) else "object"
    if form.get("type") == "integer" and "minimum" in form:
        return f"integer from {form['minimum']}"
    return form["type"]


def plural(form: dict[str, Any]) -> str:
    return f"({type_of(form)})" if "anyOf" in form or form.get("type") == "array" else type_of(form)


def main() -> None:
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()

"""What is known of a generation is in its own file: nobody else compares names of generations."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from rwkv_mlc.models import GENERATIONS

ROOT = Path(__file__).parents[2]
OWN = ("rwkv_mlc/models", "rwkv_mlc/reference")
TRAINER = ("tools/demo", "tools/train_demo.py")  # writes and trains the demo models, in PyTorch, without the package
NAMES = {*GENERATIONS, *(generation.model_type for generation in GENERATIONS.values())}


def sources() -> list[Path]:
    found = [path for room in ("rwkv_mlc", "tir_kernels", "tools") for path in (ROOT / room).rglob("*.py")]
    return [path for path in found if not path.relative_to(ROOT).as_posix().startswith((*OWN, *TRAINER))]


def asks(node: ast.AST) -> bool:
    """Whether a piece of code asks which generation it is: compares or matches its name, takes it apart as a string, or looks
    something up by it."""
    match node:
        case ast.Compare():
            return any(is_name(side) or holds_name(side) for side in (node.left, *node.comparators))
        case ast.Match():
            return is_name(node.subject)
        case ast.MatchValue():
            return holds_name(node.value)
        case ast.Subscript():
            return is_name(node.value) or is_name(node.slice)
        case ast.Call(func=ast.Attribute(value=value, attr=method)):
            return is_name(value) and hasattr(str, method)
    return False


def is_name(node: ast.AST) -> bool:
    """Whether a value is the name of a generation. ``Model.generation`` is a ``Generation``, which has no method of strings."""
    return isinstance(node, ast.Attribute) and node.attr in ("generation", "model_type")


def holds_name(node: ast.AST) -> bool:
    return any(isinstance(n, ast.Constant) and n.value in NAMES and isinstance(n.value, str) for n in ast.walk(node))


def test_nobody_compares_generations():
    for path in sources():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        asking = [node.lineno for node in ast.walk(tree) if asks(node)]
        assert not asking, f"{path.relative_to(ROOT)}, lines {asking}: ask the Generation instead"


def test_nobody_names_a_generation():
    """Not as a key or an argument either, so that nothing is found by its name where the registry should be asked."""
    for path in sources():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        strings = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Constant) and n.value in NAMES - {"4"}]
        assert not strings, f"{path.relative_to(ROOT)}, lines {strings}: name no generation here"


@pytest.mark.parametrize(
    "text",
    [
        'config.generation == "5.2"',
        'config.generation in ("5.0", "5.1")',
        '"rwkv5" == kind',
        "a.model_type != b",
        "config.generation[0]",
        "config.generation[:1]",
        "WIDTHS[config.generation]",
        'config.generation.startswith("5")',
        'generation.model_type.removeprefix("rwkv")',
        "match config.generation:\n    case name:\n        pass",
        'match kind:\n    case "4" | "5.0":\n        pass',
    ],
)
def test_a_question_is_found(text):
    assert any(asks(node) for node in ast.walk(ast.parse(text)))


@pytest.mark.parametrize(
    "text",
    [
        "config.head_size == 64",
        "model.generation.parameters(config)",
        "Record(generation=config.generation)",
        "sizes[config.head_size]",
    ],
)
def test_other_code_asks_nothing(text):
    assert not any(asks(node) for node in ast.walk(ast.parse(text)))

"""What is known of a generation is in its own file: nobody else compares names of generations."""

from __future__ import annotations

import ast
from pathlib import Path

from rwkv_mlc.models import GENERATIONS

ROOT = Path(__file__).parents[2]
OWN = ("rwkv_mlc/models", "rwkv_mlc/reference")
NAMES = {*GENERATIONS, *(generation.model_type for generation in GENERATIONS.values())}


def sources() -> list[Path]:
    found = [path for room in ("rwkv_mlc", "tir_kernels") for path in (ROOT / room).rglob("*.py")]
    return [path for path in found if not path.relative_to(ROOT).as_posix().startswith(OWN)]


def compared(node: ast.Compare) -> bool:
    """Whether a comparison asks which generation it is."""
    sides = [node.left, *node.comparators]
    asked = any(isinstance(side, ast.Attribute) and side.attr in ("generation", "model_type") for side in sides)
    return asked or any(named(side) for side in sides)


def named(node: ast.AST) -> bool:
    return any(isinstance(n, ast.Constant) and n.value in NAMES and isinstance(n.value, str) for n in ast.walk(node))


def test_nobody_compares_generations():
    for path in sources():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        asking = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Compare) and compared(node)]
        assert not asking, f"{path.relative_to(ROOT)}, lines {asking}: ask the Generation instead"


def test_nobody_names_a_generation():
    """Not as a key or an argument either, so that nothing is found by its name where the registry should be asked."""
    for path in sources():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        strings = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Constant) and n.value in NAMES - {"4"}]
        assert not strings, f"{path.relative_to(ROOT)}, lines {strings}: name no generation here"


def test_a_comparison_is_found():
    for text in (
        'config.generation == "5.2"',
        'config.generation in ("5.0", "5.1")',
        '"rwkv5" == kind',
        "a.model_type != b",
    ):
        assert compared(ast.parse(text, mode="eval").body), text
    assert not compared(ast.parse("config.head_size == 64", mode="eval").body)

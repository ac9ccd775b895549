"""A vocabulary for small models, and the command that builds them."""

from __future__ import annotations

from pathlib import Path


def write_vocabulary(path: Path, tokens: int = 96) -> None:
    lines = [f"{i} {bytes([i + 30])!r} 1\n" for i in range(1, tokens + 1)]
    path.write_text("".join(lines), encoding="utf-8")


def build_command(checkpoint: Path, folder: Path, *more: str) -> list[str]:
    return ["build", "--model", str(checkpoint), "--artifact-path", str(folder), *more]

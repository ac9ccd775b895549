"""A vocabulary for small models, and the command that builds them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any


def write_vocabulary(path: Path, tokens: int = 96) -> None:
    lines = [f"{i} {bytes([i + 30])!r} 1\n" for i in range(1, tokens + 1)]
    path.write_text("".join(lines), encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def write_index(folder: Path, content: Any) -> Path:
    """An index of shards of safetensors."""
    path = folder / "model.safetensors.index.json"
    write_json(path, content)
    return path


def huggingface_name(name: str) -> str:
    """BlinkDL's name in the words of transformers and of RWKV-5's remote code."""
    if name == "head.weight":
        return name
    name = re.sub(r"^emb\.", "embeddings.", name)
    for ours, theirs in [
        (".ln0.", ".pre_ln."),
        (".att.", ".attention."),
        (".ffn.", ".feed_forward."),
    ]:
        name = name.replace(ours, theirs)
    words = {"k": "key", "v": "value", "r": "receptance", "g": "gate"}
    return "rwkv." + re.sub(r"time_mix_(.)$", lambda match: f"time_mix_{words[match[1]]}", name)


def build_command(checkpoint: Path, folder: Path, *more: str) -> list[str]:
    return ["build", "--model", str(checkpoint), "--artifact-path", str(folder), *more]

"""Which folders are artifacts, and what to say of one that is none."""

from __future__ import annotations

import contextlib
import difflib
from pathlib import Path

from ..errors import UserError
from ..escaping import listed
from .names import BUILD_RECORD, CHAT_CONFIG, PARAMS

ARTIFACTS = Path("dist")
"""Where artifacts are, where nobody says otherwise."""


def is_artifact(path: Path | str) -> bool:
    """Whether a path looks like an artifact or the ``params`` in one, be it a damaged one, and not like a checkpoint."""
    folder = Path(path)
    return (folder / PARAMS).is_dir() or (folder.name == PARAMS and (folder.parent / BUILD_RECORD).is_file())


def artifacts_in(folder: Path) -> list[Path]:
    """The artifacts in a folder, by name; none where it cannot be read."""
    with contextlib.suppress(OSError):
        return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and is_artifact(path))
    return []


def no_artifact(path: Path) -> UserError:
    """Why a path is none, and which to name instead."""
    if inside := artifacts_in(path):
        why, advice = "it holds some", f"name one: {listed([str(one) for one in inside])}"
    elif path.is_dir():
        why, advice = f"it has no {PARAMS}/{CHAT_CONFIG}", "name a folder written by rwkv-mlc build"
    elif path.exists():
        own = [folder for folder in path.resolve().parents if is_artifact(folder)]
        why, advice = "it is a file", f"name the folder {own[0] if own else 'that rwkv-mlc build has written'}"
    else:
        why, advice = "there is no such folder", _advice_for(path)
    return UserError(f"{path} is no artifact: {why}; {advice}{'' if advice.endswith('?') else '.'}")


def _advice_for(path: Path) -> str:
    """For a path that is nothing."""
    there = {one.name: one for folder in dict.fromkeys((path.parent, ARTIFACTS)) for one in artifacts_in(folder)}
    if near := [path.name] if path.name in there else difflib.get_close_matches(path.name, there, 1):
        return f"did you mean {there[near[0]]}?"
    if there:
        return f"there are {listed([str(one) for one in there.values()])}, and rwkv-mlc build writes others"
    return "rwkv-mlc build --model CHECKPOINT writes one"

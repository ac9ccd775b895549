"""Where the data files of ``configs/`` lie: inside the installed package, or in the repository's root."""

from __future__ import annotations

from pathlib import Path

from .errors import UserError
from .escaping import quoted

PACKAGE = Path(__file__).parent
ROOT = PACKAGE / "configs" if (PACKAGE / "configs").is_dir() else PACKAGE.parent / "configs"

DEMO = ROOT / "demo" / "rwkv-7-village"
DEMO_TEMPLATE = "rwkv_world"
"""The model that is built where nobody has another, and the prompt template of the chats that it was trained on."""


def config_names(kind: str) -> list[str]:
    """The JSON files of a kind (``models``, ``templates``) without their suffix, in alphabetical order."""
    return sorted(path.stem for path in (ROOT / kind).glob("*.json"))


def config_path(kind: str, name: str) -> Path:
    """The JSON file ``configs/<kind>/<name>.json``. Raises UserError that lists the names there are."""
    names = config_names(kind)
    if name not in names:
        raise UserError(
            f"There is no {quoted(name)} among the {kind} in {ROOT / kind}; valid names are {', '.join(names)}."
        )
    return ROOT / kind / f"{name}.json"

"""What a file of tensors holds, by their names: a model, or what was trained to be added to one."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

WRAPPERS = re.compile(r"^(?:_forward_module\.|module\.|base_model\.model\.)+")
THIN = re.compile(r"(.+)\.lora_([AB])(?:\.default)?(?:\.weight)?")
TIME_STATE = re.compile(r"blocks\.\d+\.att\.time_state")
EMBEDDINGS = ("emb.weight", "embeddings.weight")


class Content(NamedTuple):
    """``what`` a file holds, and the ``advice`` for who gave it in the place of something else."""

    what: str
    advice: str


MODEL = Content("a whole model", "give the file that was trained for it")
LORA = Content("a LoRA", "give it with --lora, beside --model with the model that it was trained for")
TUNED_STATE = Content("a tuned state", "give it with --state, beside --model with the model that it was trained for")


def own_name(name: str) -> str:
    """The name of a tensor without what trainers' wrappers put before it."""
    return WRAPPERS.sub("", name)


def content_of(names: Collection[str]) -> Content | None:
    """None for tensors that are none of these."""
    own = [own_name(name) for name in names]
    if any(name.endswith(EMBEDDINGS) for name in own):
        return MODEL
    if any(THIN.fullmatch(name) for name in own):
        return LORA
    return TUNED_STATE if own and all(TIME_STATE.fullmatch(name) for name in own) else None

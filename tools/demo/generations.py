"""The model of a generation."""

from __future__ import annotations

from .model import RWKV, Size
from .rwkv7 import RWKV7

Model = RWKV | RWKV7
GENERATIONS = {"4": RWKV, "5.2": RWKV, "7": RWKV7}


def model_of(size: Size) -> Model:
    return GENERATIONS[size.generation](size)

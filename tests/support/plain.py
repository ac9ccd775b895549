"""What is built of the plain family: every generation, every scheme and every target somewhere, as ``test_plain`` says, and
each with each where the variable ``RWKV_MLC_WHOLE_MATRIX`` is set."""

from __future__ import annotations

import os
from itertools import product

from rwkv_mlc.models import GENERATIONS
from rwkv_mlc.quantization.schemes import SCHEMES

PLAIN: dict[str, list[tuple[str, str]]] = {
    "llvm": [("4", "q0f32"), ("5.0", "q4f16_0"), ("5.1", "q3f16_1"), ("5.2", "q4f16_1")],
    "android-cpu": [("4", "q0f16")],
    "vulkan": [("7", "q8f16_1")],
    "cuda": [("5.2", "q4f16_1"), ("4", "q0f16")],
    "metal": [("5.0", "q4f32_1")],
    "opencl": [("5.1", "q4f16_2")],
    "android": [("4", "q3f16_1")],
}
"""Generations and schemes by target; a generation that is new is built for CPUs."""

PLAIN["llvm"] += [
    (new, "q4f16_1") for new in GENERATIONS if all(new != old for pair in PLAIN.values() for old, _ in pair)
]
if os.environ.get("RWKV_MLC_WHOLE_MATRIX"):
    PLAIN.update((target, list(product(GENERATIONS, SCHEMES))) for target in PLAIN)

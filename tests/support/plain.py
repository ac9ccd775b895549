"""What is built of the plain family: every generation, every scheme and every target somewhere, as ``test_plain`` says."""

from __future__ import annotations

PLAIN: dict[str, list[tuple[str, str]]] = {
    "llvm": [("4", "q0f32"), ("5.0", "q4f16_0"), ("5.1", "q3f16_1"), ("5.2", "q4f16_1")],
    "android-cpu": [("4", "q0f16")],
    "vulkan": [("5.2", "q8f16_1")],
    "cuda": [("5.2", "q4f16_1"), ("4", "q0f16")],
    "metal": [("5.0", "q4f32_1")],
    "opencl": [("5.1", "q4f16_2")],
    "android": [("4", "q3f16_1")],
}
"""Generations and schemes by target."""

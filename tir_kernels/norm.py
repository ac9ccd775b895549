"""The arithmetic of norms and of time mixes on vectors of any width, float32."""

from __future__ import annotations

from .builder import constant, splat


def normalized(x, mean, scale, weight, bias, width: int):
    """(x - mean) * scale * weight + bias; ``mean`` and ``scale`` are scalars, the others vectors."""
    return (x - splat(mean, width)) * splat(scale, width) * weight + bias


def mixed(current, before, mix, width: int):
    """The interpolation of token shift: current * mix + before * (1 - mix)."""
    return current * mix + before * (constant(1.0, width) - mix)

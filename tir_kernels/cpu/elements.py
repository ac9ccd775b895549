"""A loop over elements that have nothing to do with each other: see ``gpu.elements``."""

from __future__ import annotations

from collections.abc import Callable

from tvm.script.ir_builder import tirx as T

from ..builder import root_block
from .simd import LANES

WIDTH = LANES  # of the vectors that one of them may be


def each(extent, emit: Callable) -> None:
    """Run ``emit(i)`` for every i below ``extent``, in parallel."""
    with root_block(), T.parallel(0, extent) as i:
        emit(i)

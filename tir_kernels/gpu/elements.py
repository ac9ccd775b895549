"""A thread for every element of those that have nothing to do with each other."""

from __future__ import annotations

from collections.abc import Callable

from tvm.script.ir_builder import tirx as T

from .threads import THREADS, grid

WIDTH = 1  # of the vectors that one of them may be


def each(extent, emit: Callable) -> None:
    """Run ``emit(i)`` for every i below ``extent``."""
    with grid((extent + THREADS - 1) // THREADS) as (block, thread):
        i = T.bind(block * THREADS + thread)
        with T.If(i < extent), T.Then():
            emit(i)

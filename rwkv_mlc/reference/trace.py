"""Naming the values of a forward while it runs.

A trace is called with the name of every value, such as ``blocks.3.att.wkv``, and the value, one row a token; what it
returns goes on in its place. Names are those of ``Generation.values``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Trace = Callable[[str, np.ndarray], np.ndarray]


def ignore(_name: str, value: np.ndarray) -> np.ndarray:
    """The trace that changes nothing."""
    return value


def within(trace: Trace, prefix: str) -> Trace:
    """A trace of the names below ``prefix``."""
    return lambda name, value: trace(prefix + name, value)

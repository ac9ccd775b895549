"""The first value of a dump that is NaN or infinite, or would be: where it comes from and what would cure it.

The GPU's kernels put float16's largest value in the place of what lies beyond it, so that counts as well.
"""

from __future__ import annotations

import numpy as np

from ..models import generation_of
from ..models.values import LARGEST_FLOAT16, Value, nearest, place
from .dump import Dump


def first_nonfinite(dump: Dump, other: Dump | None = None) -> str | None:
    """Says which value of a dump is the first that has NaN, Inf or the end of float16's range; None where there is none.
    ``other`` tells whether its values would fit."""
    for name, array in dump.tensors.items():
        if not np.isfinite(array).all() or _saturated(array):
            return _described(dump, name, array, other)
    return None


def _saturated(array: np.ndarray) -> int:
    """How many elements are at the end of float16's range."""
    return int((np.abs(array) == LARGEST_FLOAT16).sum()) if array.dtype == np.float16 else 0


def _described(dump: Dump, name: str, array: np.ndarray, other: Dump | None) -> str:
    call, _, value_name = name.partition("/")
    config = dump.header.config
    graph = generation_of(config).values(config)
    value = graph[value_name]
    sources, between = nearest(graph, dump.tensors, call, value)
    ranges = ", ".join(f"{source} up to {np.abs(dump.tensors[source]).max():.4g}" for source in sources)
    operations = " and ".join(v.operation for v in (*reversed(between), value))
    nan, inf = np.isnan(array).sum(), np.isinf(array).sum()
    what, count = "NaN or Inf", f"{nan} NaN and {inf} Inf"
    if not nan and not inf:
        what, count = "value that float16 cannot hold", f"{_saturated(array)} at {LARGEST_FLOAT16:.0f}"
    text = (
        f"The first {what} of the {dump.header.source}'s dump is in {name} ({count} among {array.size}): {operations} of "
        f"{ranges or 'values that the dump does not hold'}."
    )
    expected = other.tensors.get(name) if other else None
    largest = float(np.abs(expected).max()) if expected is not None and np.isfinite(expected).all() else None
    if largest is not None:
        text += f" The {other.header.source} has magnitudes up to {largest:.4g} there."
    return f"{text} {_cure(dump, value, largest)}"


def _cure(dump: Dump, value: Value, largest: float | None) -> str:
    layer, role = place(value.name)
    narrow = dump.header.activations == "float16"
    if narrow and (largest is None or largest > LARGEST_FLOAT16):
        cures = [] if layer is None else [f"--fp32 {role}", f"--fp32-layers {layer}"]
        cures += [*(["--rescale-every 6"] if value.rescaled else []), "--auto-precision"]
        return f"Float16 ends at {LARGEST_FLOAT16:.0f}: build it with {' or '.join(cures)}."
    if "wkv" in value.operation:
        return "Look at its exponents and its running maximum, and at the state that it starts from."
    if "norm" in value.operation:
        return "Look at its epsilon, and at what it divides by."
    return "Its inputs are finite and it should fit: look at its indices, it may read or write out of bounds."

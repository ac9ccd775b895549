"""The first NaN or Inf of a dump: where it comes from and what would cure it."""

from __future__ import annotations

import numpy as np

from .dump import Dump
from .roles import Value, place, values

LARGEST_FLOAT16 = 65504.0


def first_nonfinite(dump: Dump, other: Dump | None = None) -> str | None:
    """In words, where there is one. ``other`` tells whether its values would fit."""
    for name, array in dump.tensors.items():
        if not np.isfinite(array).all():
            return _described(dump, name, array, other)
    return None


def _described(dump: Dump, name: str, array: np.ndarray, other: Dump | None) -> str:
    call, _, value_name = name.partition("/")
    value = values(dump.header.config)[value_name]
    inputs = [f"{call}/{source}" for source in value.inputs]
    ranges = [f"{source} up to {np.abs(dump.tensors[source]).max():.4g}" for source in inputs if source in dump.tensors]
    counts = f"{np.isnan(array).sum()} NaN and {np.isinf(array).sum()} Inf among {array.size}"
    text = (
        f"The first NaN or Inf of the {dump.header.source}'s dump is in {name} ({counts}): {value.operation} of "
        f"{', '.join(ranges) or 'values that the dump does not hold'}."
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
        where = f"--fp32 {role}" + (f" or --fp32-layers {layer}" if layer is not None else "")
        return (
            f"Float16 ends at {LARGEST_FLOAT16:.0f}: compute it in float32 ({where}), or halve the residual stream every few "
            "layers (--rescale-every 6)."
        )
    if "wkv" in value.operation:
        return "Look at its exponents and its running maximum, and at the state that it starts from."
    if "norm" in value.operation:
        return "Look at its epsilon, and at what it divides by."
    return "Its inputs are finite and it should fit: look at its indices, it may read or write out of bounds."

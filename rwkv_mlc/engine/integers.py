"""Integers that callers give: ids of tokens, slots."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import numpy as np

from ..errors import UserError
from ..escaping import quoted


def integers(values: object, what: str) -> list[int]:
    """A sequence or an array of integers, as Python's. Raises UserError for anything else: a float is no id, nor is a truth
    value."""
    listed = values.tolist() if isinstance(values, np.ndarray) else values
    if not isinstance(listed, Sequence) or isinstance(listed, (str, bytes, bytearray, memoryview)):
        raise UserError(f"{what} are a list or an array of integers, found {quoted(values)}.")
    for value in listed:
        if type(value) is not int and (not isinstance(value, Integral) or isinstance(value, bool)):
            raise UserError(f"{what} are integers, found {quoted(value)}.")
    return list(map(int, listed))

"""Groups of a row's inputs as vectors, for the kernels that make integers of them."""

from __future__ import annotations

from collections.abc import Callable

from tvm.script.ir_builder import tirx as T

from ..builder import constant, span
from .simd import registers, vector_width


def each_group(x, row: tuple, columns: int, group: int, part, parts: int, emit: Callable) -> None:
    """Run ``emit(g, values)`` for part ``part`` of ``parts`` equal parts of a row's groups; ``values`` are vectors of
    ``vector_width(group)`` inputs. A row that ends within a group is one part, and goes on with zeros."""
    width, whole = vector_width(group), columns // group // parts
    places = range(0, group, width)
    with T.serial(0, whole) as i:
        g = part * whole + i
        emit(g, [x[(*row, span(g * group + place, width))] for place in places])
    if columns % group:
        padded = registers((group,))
        for place in places:
            T.buffer_store(padded, constant(0.0, width), [span(place, width)])
        for i in range(columns % group):
            T.buffer_store(padded, x[(*row, columns // group * group + i)], [i])
        emit(T.int64(columns // group), [padded[span(place, width)] for place in places])

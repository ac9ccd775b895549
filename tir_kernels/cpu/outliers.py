"""Inputs that are far larger than the others of their group, which would take the precision of a common scale from them.

Integers leave them out, and products add them in float32. A list of outliers is int32 [2, entries]: how many there are and
then the numbers of the inputs in its first row, the bits of their values below these numbers.
"""

from __future__ import annotations

from functools import reduce

from tvm.script.ir_builder import tirx as T

from ..builder import arg, cast, constant, span, splat
from .lists import compress, count, magnitude
from .packed import PackedGroup
from .simd import LANES, intrinsic, registers

STEP = 5 << 23
"""In the bits of a float32 a factor of 32: outliers are above the smallest limit among largest / 32 ** n that not more than
a quarter of the inputs other than zero exceed, and an eighth of the group. What is left has a quarter within 1/32 of its
largest."""


def lists_of_outliers(leading: tuple, columns: int, form: PackedGroup, lists: int):
    """The argument that holds ``lists`` lists for every row, each for an equal part of the groups."""
    return arg("outliers", (*leading, lists, *list_shape(columns, form, lists)), "int32")


def list_shape(columns: int, form: PackedGroup, lists: int = 1) -> tuple[int, int]:
    """The shape of one of ``lists`` lists, with room for what is written past its end."""
    return 2, 1 + form.groups(columns) // lists * (form.group // 8) + LANES


def set_apart(values: list, width: int, first, outliers, at: tuple) -> tuple[list, object]:
    """Move the outliers of a group, vectors of ``width`` inputs of which the first has the number ``first``, to the end of the
    list ``outliers[at]``. Returns the vectors with zeros in their place, and the largest magnitude that is left."""
    parts, lanes = range(len(values)), span(0, width)
    kept, magnitudes = registers((len(values), width)), registers((len(values), width), "int32")
    top, limit = registers((1,), "int32"), registers((1,), "int32")
    for i in parts:
        T.buffer_store(kept, values[i], [i, lanes])
        T.buffer_store(magnitudes, magnitude(kept[i, lanes], width), [i, lanes])

    def largest():
        return intrinsic("llvm.vector.reduce.smax", "int32", reduce(T.max, [magnitudes[i, lanes] for i in parts]))

    def exceeds(i: int, bound):
        return magnitudes[i, lanes] > splat(bound, width)

    def above(bound):
        return sum((count(exceeds(i, bound), width) for i in parts[1:]), count(exceeds(0, bound), width))

    T.buffer_store(top, largest(), [0])
    T.buffer_store(limit, top[0], [0])
    most = T.bind(T.min(T.shift_right(above(T.int32(0)), T.int32(2)), T.int32(width * len(values) // 8)))
    with T.While(above(limit[0] - T.int32(STEP)) <= most):
        T.buffer_store(limit, limit[0] - T.int32(STEP), [0])
    with T.If(limit[0] < top[0]), T.Then():
        end = T.bind(outliers[(*at, 0, 0)])
        for i in parts:
            numbers = splat(T.cast(first, "int32"), width) + T.ramp(T.int32(i * width), T.int32(1), width)
            words = numbers, T.reinterpret(kept[i, lanes], dtype=f"int32x{width}")
            for row, listed in enumerate(words):
                chosen = compress(listed, exceeds(i, limit[0]), "int32", width)
                T.buffer_store(outliers, chosen, [*at, row, span(1 + end, width)])
            end = T.bind(end + count(exceeds(i, limit[0]), width))
            T.buffer_store(kept, T.Select(exceeds(i, limit[0]), constant(0.0, width), kept[i, lanes]), [i, lanes])
            T.buffer_store(magnitudes, magnitude(kept[i, lanes], width), [i, lanes])
        T.buffer_store(outliers, end, [*at, 0, 0])
        T.buffer_store(top, largest(), [0])
    return [kept[i, lanes] for i in parts], T.bind(T.reinterpret(top[0], dtype="float32"))


def add_outliers(sums, row: tuple, form: PackedGroup, weights: list, block, outliers, at: tuple) -> None:
    """Add to ``sums[row]``, 16 outputs in registers, what the outliers in the list ``outliers[at]`` come to."""
    q_weight, q_scale = weights
    with T.serial(0, outliers[(*at, 0, 0)]) as entry:
        k = T.bind(outliers[(*at, 0, 1 + entry)])
        x = splat(T.reinterpret(outliers[(*at, 1, 1 + entry)], dtype="float32"), LANES)
        weight = form.value(q_weight, block, k) * form.scale(q_scale, block, k // form.group)
        T.buffer_store(sums, sums[row] + weight * x, list(row))

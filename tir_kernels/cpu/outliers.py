"""Inputs that are far larger than the others of their group, which would take the precision of a common scale from them.

Integers leave them out, and products add them in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

from tvm.script.ir_builder import tirx as T

from ..builder import arg, constant, span, splat
from .lists import compress, count, magnitude
from .packed import PackedGroup
from .simd import LANES, intrinsic, registers, sum_lanes

STEP = 5 << 23
"""In the bits of a float32 a factor of 32: outliers are above the smallest limit among largest / 32 ** n that not more than
a quarter of the inputs other than zero exceed, and an eighth of the group. What is left has a quarter within 1/32 of its
largest."""


@dataclass(frozen=True)
class OutlierLists:
    """The outliers of a row in ``lists`` lists, each for an equal part of the row's groups. They are int32 [``size``]: how many
    each list has, then the inputs' numbers of each list, then the bits of their values."""

    columns: int
    form: PackedGroup
    lists: int = 1

    @property
    def capacity(self) -> int:
        """Of a list, with what is written past its end."""
        return self.form.groups(self.columns) // self.lists * (self.form.group // 8) + LANES

    @property
    def size(self) -> int:
        return self.lists * (1 + 2 * self.capacity)

    def argument(self, *rows):
        """Those of all rows as the argument of a kernel."""
        return arg("outliers", (*rows, self.size), "int32")

    def numbers(self, part):
        """Where the inputs' numbers of a list begin."""
        return self.lists + part * self.capacity

    def values(self, part):
        """Where the bits of their values begin."""
        return self.lists + (self.lists + part) * self.capacity


def set_apart(values: list, width: int, first, outliers, row: tuple, lists: OutlierLists, part) -> tuple[list, object]:
    """Move the outliers of a group, vectors of ``width`` inputs of which the first has the number ``first``, to the end of list
    ``part`` of ``outliers[row]``. Returns the vectors with zeros in their place, and the largest magnitude that is left."""
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
        end = T.bind(outliers[(*row, part)])
        for i in parts:
            numbers = splat(T.cast(first, "int32"), width) + T.ramp(T.int32(i * width), T.int32(1), width)
            value_bits = T.reinterpret(kept[i, lanes], dtype=f"int32x{width}")
            for start, listed in ((lists.numbers(part), numbers), (lists.values(part), value_bits)):
                chosen = compress(listed, exceeds(i, limit[0]), "int32", width)
                T.buffer_store(outliers, chosen, [*row, span(start + end, width)])
            end = T.bind(end + count(exceeds(i, limit[0]), width))
            T.buffer_store(kept, T.Select(exceeds(i, limit[0]), constant(0.0, width), kept[i, lanes]), [i, lanes])
            T.buffer_store(magnitudes, magnitude(kept[i, lanes], width), [i, lanes])
        T.buffer_store(outliers, end, [*row, part])
        T.buffer_store(top, largest(), [0])
    return [kept[i, lanes] for i in parts], T.bind(T.reinterpret(top[0], dtype="float32"))


def add_outliers(sums, at: tuple, weights: list, block, outliers, row: tuple, lists: OutlierLists) -> None:
    """Add to ``sums[at]``, 16 outputs in registers, what the outliers of ``outliers[row]`` come to."""
    (q_weight, q_scale), form = weights, lists.form
    counts = outliers[(*row, span(0, lists.lists))]
    with T.If((counts if lists.lists == 1 else sum_lanes(counts)) > T.int32(0)), T.Then():
        with T.serial(0, lists.lists) as part, T.serial(0, outliers[(*row, part)]) as entry:
            k = T.bind(outliers[(*row, lists.numbers(part) + entry)])
            x = splat(T.reinterpret(outliers[(*row, lists.values(part) + entry)], dtype="float32"), LANES)
            weight = form.value(q_weight, block, k) * form.scale(q_scale, block, k // form.group)
            T.buffer_store(sums, sums[at] + weight * x, list(at))

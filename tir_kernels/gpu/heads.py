"""How blocks of threads share the state of a head, and how their shares are added up."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from operator import add

from ..builder import span
from .threads import lanes_of, vector_of

MOST_VALUES = 16  # of a head in a block: four blocks for a head of 64
PARTS = (4, 2, 1)  # threads that share the keys of a value
CHAINS = 4


def part_of_head(size: int) -> tuple[int, int]:
    """Values of a head that a block runs, and threads that share the keys of each."""
    values = next(n for n in range(min(size, MOST_VALUES), 0, -1) if size % n == 0)
    return values, next(n for n in PARTS if size % n == 0)


class Keys:
    """Those of ``size`` keys that belong to thread ``part`` of ``parts``: vectors of ``width``, which alternate between the
    threads, so that what they load at once lies together."""

    def __init__(self, size: int, part, parts: int):
        self.count, self.part, self.parts = size // parts, part, parts
        self.width = vector_of("float32", self.count)

    def __getitem__(self, j: int):
        """The j-th key of the thread."""
        return (j // self.width * self.parts + self.part) * self.width + j % self.width

    def vectors(self) -> list[tuple]:
        """The keys of each vector, and their places among the thread's."""
        return [(span(self[j], self.width), span(j, self.width)) for j in range(0, self.count, self.width)]

    def of(self, load: Callable) -> list:
        """What ``load(keys)``, a vector, gives for each of the thread's keys."""
        return [value for keys, _ in self.vectors() for value in lanes_of(load(keys), self.width)]


def total(values: list):
    """Their sum, in chains that do not wait for each other."""
    return reduce(add, [reduce(add, values[i::CHAINS]) for i in range(min(CHAINS, len(values)))])


def total_of(shares, *place):
    """The sum of what the threads have put into a row of ``shares``."""
    extent = int(shares.shape[-1])
    width = vector_of("float32", extent)
    return total(
        [value for j in range(0, extent, width) for value in lanes_of(shares[(*place, span(j, width))], width)]
    )

"""Groups of quantized weights, however they lie in memory.

Element k of a row is field k % n of word k // n, n = 32 // bits, lowest bits first, and stands for (field - max) * scale
with max = 2 ** (bits - 1) - 1. There is one scale for every group of inputs, and rows are padded to whole groups.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Grouped:
    """The arithmetic of fields ``bits`` wide with one scale of ``scale_dtype`` for every ``group`` of inputs."""

    bits: int
    group: int
    scale_dtype: str

    @property
    def fields(self) -> int:
        """Fields in a word."""
        return 32 // self.bits

    @property
    def words(self) -> int:
        """Words in a group."""
        return self.group // self.fields

    @property
    def max_int(self) -> int:
        """The largest magnitude of a field without its offset, which is the offset itself."""
        return 2 ** (self.bits - 1) - 1

    def groups(self, columns: int) -> int:
        """Groups in a row of ``columns`` inputs."""
        return -(-columns // self.group)

    def padded(self, columns: int) -> int:
        """Inputs of a row of ``columns`` with those that fill its last group."""
        return self.groups(columns) * self.group

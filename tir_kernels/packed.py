"""Weights as the CPU's matrix kernels read them: rows in blocks of 16, one row a lane.

A matrix [N, K] has ceil(N / 16) blocks; lanes past N are zero.

- float: ``weight`` [blocks, K, 16].
- group: ``q_weight`` uint32 [blocks, words, 16] and ``q_scale`` [blocks, groups, 16]; element k of a row is field k % n of
  word k // n, n = 32 // bits, lowest bits first, and stands for (field - max) * scale with max = 2 ** (bits - 1) - 1.
  K is padded to whole groups.

It is a permutation of the stored words, never a change of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.script.ir_builder import tirx as T

from .builder import arg
from .simd import LANES, splat, widen


@dataclass(frozen=True)
class PackedFloat:
    """A matrix in ``dtype``, float16 or float32."""

    dtype: str

    def args(self, name: str, rows: int, columns: int) -> list:
        return [arg(f"{name}_weight", (-(-rows // LANES), columns, LANES), self.dtype)]

    def padded(self, columns: int) -> int:
        return columns


@dataclass(frozen=True)
class PackedGroup:
    """A matrix of ``bits``-wide fields with one scale for every ``group`` of inputs."""

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
        return 2 ** (self.bits - 1) - 1

    def groups(self, columns: int) -> int:
        return -(-columns // self.group)

    def padded(self, columns: int) -> int:
        return self.groups(columns) * self.group

    def args(self, name: str, rows: int, columns: int) -> list:
        blocks, groups = -(-rows // LANES), self.groups(columns)
        return [
            arg(f"{name}_q_weight", (blocks, groups * self.words, LANES), "uint32"),
            arg(f"{name}_q_scale", (blocks, groups, LANES), self.scale_dtype),
        ]

    def field(self, words, index: int):
        """Field ``index`` of 16 words as float32, offset removed."""
        mask = splat(T.uint32(2**self.bits - 1), LANES)
        value = T.bitwise_and(T.shift_right(words, splat(T.uint32(index * self.bits), LANES)), mask)
        return widen(widen(value, "int32", LANES), "float32", LANES) - splat(T.float32(self.max_int), LANES)

    def pair(self, words, index: int):
        """Fields ``index`` and ``index + fields / 2`` of 16 words as the low and high halves of int32 lanes."""
        low = 2**self.bits - 1
        shift = index * self.bits
        realign = 16 - self.fields // 2 * self.bits

        def part(by: int, mask: int):
            shifted = words
            if by:
                move = T.shift_right if by > 0 else T.shift_left
                shifted = move(words, splat(T.uint32(abs(by)), LANES))
            return T.bitwise_and(shifted, splat(T.uint32(mask), LANES))

        if realign == 0:
            return part(shift, low | low << 16)
        return T.bitwise_or(part(shift, low), part(shift - realign, low << 16))


Packed = PackedFloat | PackedGroup

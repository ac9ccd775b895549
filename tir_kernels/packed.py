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

    @property
    def quads(self) -> list[list[int]]:
        """The fields of a word in fours, in the order in which ``quad`` spreads them over bytes."""
        stride = max(1, 8 // self.bits)
        if stride * self.bits == 8:
            return [list(range(start, self.fields, stride)) for start in range(stride)]
        return [list(range(start, min(start + 4, self.fields))) for start in range(0, self.fields, 4)]

    def quad(self, words, index: int):
        """The fields ``quads[index]`` of 16 words as the bytes of int32 lanes, lowest first; missing ones are zero."""
        masks: dict[int, int] = {}
        for byte, field in enumerate(self.quads[index]):
            shift = field * self.bits - byte * 8
            masks[shift] = masks.get(shift, 0) | 2**self.bits - 1 << byte * 8
        result = None
        for shift, mask in masks.items():
            part = words
            if shift:
                move = T.shift_right if shift > 0 else T.shift_left
                part = move(part, splat(T.uint32(abs(shift)), LANES))
            if mask != 2**32 - 1:
                part = T.bitwise_and(part, splat(T.uint32(mask), LANES))
            result = part if result is None else T.bitwise_or(result, part)
        return result


Packed = PackedFloat | PackedGroup

"""Weights as the CPU's matrix kernels read them. Each form is a permutation of the stored fields, never a change of them.

In row blocks, for products with all inputs: 16 rows of a matrix [N, K], one row a lane, in ceil(N / 16) blocks.

- float: ``weight`` [blocks, K, 16].
- group: ``q_weight`` uint32 [blocks, words, 16] and ``q_scale`` [blocks, groups, 16], with the fields of ``grouped``.

In tiles, for products that leave inputs out: a tile is as many rows as one input has weights of in a line of 64 bytes,
the unit in which memory is read.

- float: ``weight`` [tiles, K, rows of a tile].
- group, of 4 or 8 bits: ``q_weight`` [tiles, K, 16], uint32 for the sake of the stored type: byte p is the field of row p
  and, of 4 bits, in its upper nibble that of row 64 + p. ``q_scale`` [tiles, groups, rows of a tile], where those of 64 rows
  are in the order in which the bytes of four lines lie after they have been interleaved: the scale of row
  16 a + 4 b + c is at 16 b + 4 a + c.

Rows past N are zero.

As they are stored, [N, K] or the words of each row, for a caller that gives them so: 16 rows are gathered, which takes as many
loads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tvm.script.ir_builder import tirx as T

from ..builder import arg, cast, span, splat
from ..grouped import Grouped
from .simd import LANES

LINE = 64  # bytes
LINE_WORDS = LINE // 4


@dataclass(frozen=True)
class PackedFloat:
    """A matrix in ``dtype``, float16 or float32."""

    dtype: str

    def args(self, name: str, rows: int, columns: int) -> list:
        return [arg(f"{name}_weight", (-(-rows // LANES), columns, LANES), self.dtype)]

    def padded(self, columns: int) -> int:
        return columns

    def value(self, weight, block, k):
        """The weights of input k in a block of 16 rows, float32."""
        return cast(weight[block, k, span(0, LANES)], "float32", LANES)


@dataclass(frozen=True)
class TiledFloat(PackedFloat):
    """A matrix in ``dtype``, in tiles."""

    @property
    def tile(self) -> int:
        """Rows of a tile."""
        return {"float16": LINE // 2, "float32": LINE // 4}[self.dtype]

    def args(self, name: str, rows: int, columns: int) -> list:
        return [arg(f"{name}_weight", (-(-rows // self.tile), columns, self.tile), self.dtype)]

    def value(self, weight, block, k):
        vectors = self.tile // LANES
        at = T.ramp(block % vectors * LANES, 1, LANES)
        return cast(weight[block // vectors, k, at], "float32", LANES)


@dataclass(frozen=True)
class PackedGroup(Grouped):
    """A matrix of ``bits``-wide fields with one scale for every ``group`` of inputs."""

    def args(self, name: str, rows: int, columns: int) -> list:
        blocks, groups = -(-rows // LANES), self.groups(columns)
        return [
            arg(f"{name}_q_weight", (blocks, groups * self.words, LANES), "uint32"),
            arg(f"{name}_q_scale", (blocks, groups, LANES), self.scale_dtype),
        ]

    def scale(self, q_scale, block, g):
        """The scales of group g in a block of 16 rows, float32."""
        return cast(q_scale[block, g, span(0, LANES)], "float32", LANES)

    def value(self, q_weight, block, k):
        """The weights of input k in a block of 16 rows, float32, without their scale."""
        return self.field(self.word(q_weight, block, k // self.fields), k % self.fields)

    def word(self, q_weight, block, at):
        """Word ``at`` of each of a block of 16 rows."""
        return q_weight[block, at, span(0, LANES)]

    def address(self, q_weight, block, at):
        """Where that lies, to load it before it is needed; None where the rows lie apart."""
        return T.address_of(q_weight[block, at, 0])

    def values(self, q_weight, block, g) -> Iterator:
        """The weights of each input of group g in a block of 16 rows, float32, without their scale."""
        for word in range(self.words):
            words = T.bind(self.word(q_weight, block, g * self.words + word))
            for k in range(self.fields):
                yield self.field(words, k)

    def byte_quads(self, q_weight, block, g) -> Iterator:
        """The fields of group g in a block of 16 rows as bytes, uint32: those of ``quads`` of each word in turn."""
        for word in range(self.words):
            words = T.bind(self.word(q_weight, block, g * self.words + word))
            for j in range(len(self.quads)):
                yield self.quad(words, j)

    def field(self, words, index):
        """Field ``index`` of 16 words as float32, offset removed."""
        mask = splat(T.uint32(2**self.bits - 1), LANES)
        value = T.bitwise_and(T.shift_right(words, splat(T.cast(index * self.bits, "uint32"), LANES)), mask)
        return cast(cast(value, "int32", LANES), "float32", LANES) - splat(T.float32(self.max_int), LANES)

    @property
    def quads(self) -> list[list[int]]:
        """The fields of a word in fours, in the order in which ``quad`` spreads them over bytes."""
        stride = max(1, 8 // self.bits)
        if stride * self.bits == 8:
            return [list(range(start, self.fields, stride)) for start in range(stride)]
        return [list(range(start, min(start + 4, self.fields))) for start in range(0, self.fields, 4)]

    def byte_order(self) -> list[int]:
        """The inputs of a group in the order of ``quads``; ``group`` stands for a byte that belongs to none."""
        order = []
        for word in range(self.words):
            for quad in self.quads:
                order += [word * self.fields + field for field in quad] + [self.group] * (4 - len(quad))
        return order

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


@dataclass(frozen=True)
class TiledGroup(PackedGroup):
    """A matrix of 4-bit or 8-bit fields in tiles. To what quantizes activations, four consecutive inputs are a word
    of one quad."""

    @property
    def tile(self) -> int:
        """Rows of a tile."""
        return 8 * LINE // self.bits

    @property
    def fields(self) -> int:
        return 4

    @property
    def quads(self) -> list[list[int]]:
        return [[0, 1, 2, 3]]

    def args(self, name: str, rows: int, columns: int) -> list:
        tiles = -(-rows // self.tile)
        return [
            arg(f"{name}_q_weight", (tiles, self.padded(columns), LINE_WORDS), "uint32"),
            arg(f"{name}_q_scale", (tiles, self.groups(columns), self.tile), self.scale_dtype),
        ]

    def scale(self, q_scale, block, g):
        tile, first, part = self._place(block)
        at = [T.ramp(first + part * 4 + 16 * b, 1, 4) for b in range(4)]
        return cast(T.Shuffle([q_scale[tile, g, place] for place in at], list(range(LANES))), "float32", LANES)

    def value(self, q_weight, block, k):
        """The weights of input k in a block of 16 rows, float32, without their scale."""
        fields = cast(self._octets(q_weight, block, k), "int32", LANES)
        return cast(fields - splat(T.int32(self.max_int), LANES), "float32", LANES)

    def values(self, q_weight, block, g) -> Iterator:
        return (self.value(q_weight, block, g * self.group + k) for k in range(self.group))

    def byte_quads(self, q_weight, block, g) -> Iterator:
        order = [input * LANES + row for row in range(LANES) for input in range(4)]
        for k in range(0, self.group, 4):
            octets = [T.bind(self._octets(q_weight, block, g * self.group + k + i)) for i in range(4)]
            yield T.reinterpret(T.Shuffle(octets, order), dtype="uint32x16")

    def nibbles(self, words, high, width: int):
        """The fields of lines of 4 bits in the lower or (``high`` is 1) upper nibbles of the bytes of ``width`` words."""
        if self.bits == 8:
            return words
        words = T.shift_right(words, splat(T.Cast("uint32", high * 4), width))
        return T.bitwise_and(words, splat(T.uint32(0x0F0F0F0F), width))

    def _octets(self, q_weight, block, k):
        """The fields of input k in a block of 16 rows, uint8."""
        tile, first, part = self._place(block)
        words = q_weight[tile, k, T.ramp(part * 4, 1, 4)]
        return T.reinterpret(self.nibbles(words, first // LINE, 4), dtype="uint8x16")

    def _place(self, block):
        """Where a block of 16 rows lies: its tile, the first of the 64 rows there that it is among, its place among
        their blocks."""
        blocks = self.tile // LANES
        return block // blocks, block % blocks // 4 * LINE, block % 4


class StoredRows(NamedTuple):
    """An array [rows, width] as a kernel's argument, read 16 rows at a time."""

    array: object
    rows: int
    width: int

    @classmethod
    def arg(cls, name: str, rows: int, width: int, dtype: str) -> StoredRows:
        return cls(arg(name, (rows, width), dtype), rows, width)

    def lanes(self, block, column):
        """Elements of one column; past the last row they repeat it."""
        at = T.ramp(block * (LANES * self.width) + column, self.width, LANES)
        if self.rows % LANES:
            at = T.min(at, splat(T.int64((self.rows - 1) * self.width) + column, LANES))
        return T.decl_buffer((self.rows * self.width,), self.array.dtype, data=self.array.data)[at]


@dataclass(frozen=True)
class StoredFloat(PackedFloat):
    """A matrix in ``dtype``, as it is stored."""

    def args(self, name: str, rows: int, columns: int) -> list:
        return [StoredRows.arg(f"{name}_weight", rows, columns, self.dtype)]

    def value(self, weight: StoredRows, block, k):
        return cast(weight.lanes(block, k), "float32", LANES)


@dataclass(frozen=True)
class StoredGroup(PackedGroup):
    """A matrix of ``bits``-wide fields, as it is stored."""

    def args(self, name: str, rows: int, columns: int) -> list:
        groups = self.groups(columns)
        return [
            StoredRows.arg(f"{name}_q_weight", rows, groups * self.words, "uint32"),
            StoredRows.arg(f"{name}_q_scale", rows, groups, self.scale_dtype),
        ]

    def scale(self, q_scale: StoredRows, block, g):
        return cast(q_scale.lanes(block, g), "float32", LANES)

    def word(self, q_weight: StoredRows, block, at):
        return q_weight.lanes(block, at)

    def address(self, q_weight: StoredRows, block, at):
        return None


Packed = PackedFloat | PackedGroup
Tiled = TiledFloat | TiledGroup

"""Whole numbers below 2^53 as two int32, for devices without wider arithmetic."""

from __future__ import annotations

from typing import NamedTuple

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import cast

BITS = 22
MASK = 2**BITS - 1


class Whole(NamedTuple):
    """high * 2^22 + low. Up to 511 of them, of floats of up to 2^36, can be added part by part before ``carried``."""

    high: tirx.Expr
    low: tirx.Expr

    @classmethod
    def of(cls, value) -> Whole:
        """A whole float32 number of up to 2^36."""
        high = T.bind(T.cast(value * T.float32(2.0**-BITS), "int32"))
        return cls(high, T.cast(value - cast(high, "float32", 1) * T.float32(2.0**BITS), "int32"))

    @classmethod
    def zero(cls) -> Whole:
        return cls(T.int32(0), T.int32(0))

    def carried(self) -> Whole:
        """The same number with a low part below 2^22."""
        low = T.bind(self.low)
        return Whole(T.bind(self.high + T.shift_right(low, T.int32(BITS))), T.bind(T.bitwise_and(low, T.int32(MASK))))

    def plus(self, other: Whole) -> Whole:
        return Whole(self.high + other.high, self.low + other.low).carried()

    def minus(self, other: Whole) -> Whole:
        """The difference from one that is not larger."""
        return Whole(self.high - other.high, self.low - other.low).carried()

    def less(self, other: Whole):
        """Whether it is less; both are carried."""
        return T.Or(self.high < other.high, T.And(self.high == other.high, self.low < other.low))

    def times(self, count) -> Whole:
        """The product with an int32 number below 2^18, where it is below 2^53."""
        half = BITS // 2
        middle = T.bind(count * T.shift_right(self.low, T.int32(half)))
        low = T.bitwise_and(self.low, T.int32(2**half - 1)) * count
        low = low + T.shift_left(T.bitwise_and(middle, T.int32(2**half - 1)), T.int32(half))
        return Whole(self.high * count + T.shift_right(middle, T.int32(half)), low).carried()

    def approximately(self):
        """The nearest float32 number, or one of its neighbors."""
        return cast(self.high, "float32", 1) * T.float32(2.0**BITS) + cast(self.low, "float32", 1)

    def part(self, numerator) -> tuple[Whole, tirx.Expr]:
        """(floor(number * numerator / 2^32), whether that is all), with a uint32 ``numerator``: in digits of 16 bits."""
        digit, bits = T.uint32(0xFFFF), T.uint32(16)
        high, low = (T.bind(T.cast(value, "uint32")) for value in self)
        digits = [
            T.bitwise_and(low, digit),
            T.bitwise_and(T.bitwise_or(T.shift_right(low, bits), T.shift_left(high, T.uint32(BITS - 16))), digit),
            T.bitwise_and(T.shift_right(high, T.uint32(32 - BITS)), digit),
            T.shift_right(high, T.uint32(48 - BITS)),
        ]
        product: list = [T.uint32(0)] * 6
        for i, factor in enumerate((T.bitwise_and(numerator, digit), T.shift_right(numerator, bits))):
            carry = T.uint32(0)
            for j, own in enumerate(digits):
                value = T.bind(own * factor + product[i + j] + carry)
                product[i + j], carry = T.bind(T.bitwise_and(value, digit)), T.bind(T.shift_right(value, bits))
            product[i + len(digits)] = carry
        rest, a, b, c, d = T.bitwise_or(product[0], product[1]), *product[2:]
        low = T.bitwise_and(T.bitwise_or(a, T.shift_left(b, bits)), T.uint32(MASK))
        high = T.bitwise_or(T.shift_right(b, T.uint32(BITS - 16)), T.shift_left(c, T.uint32(32 - BITS)))
        high = T.bitwise_or(high, T.shift_left(d, T.uint32(48 - BITS)))
        return Whole(T.bind(T.cast(high, "int32")), T.bind(T.cast(low, "int32"))), T.bind(rest == T.uint32(0))

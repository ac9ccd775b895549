"""Arithmetic with values of TIR's types, lane by lane."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from . import narrowing
from .narrowing import Interval
from .words import Assembler, Glsl, Literal, Op, Unsupported

BOOL, INT32, UINT32, INT64 = (np.dtype(name) for name in ("bool", "int32", "uint32", "int64"))
FLOAT16, FLOAT32 = np.dtype("float16"), np.dtype("float32")

# An operator has an instruction for each kind of dtype that its operands may be of.
BINARY: dict[str, dict[str, Op]] = {
    "Add": {"i": Op.IAdd, "u": Op.IAdd, "f": Op.FAdd},
    "Sub": {"i": Op.ISub, "u": Op.ISub, "f": Op.FSub},
    "Mul": {"i": Op.IMul, "u": Op.IMul, "f": Op.FMul},
    "Div": {"i": Op.SDiv, "u": Op.UDiv, "f": Op.FDiv},
    "Mod": {"i": Op.SRem, "u": Op.UMod},
    "And": {"b": Op.LogicalAnd},
    "Or": {"b": Op.LogicalOr},
    "BitwiseAnd": {"i": Op.BitwiseAnd, "u": Op.BitwiseAnd, "b": Op.LogicalAnd},
    "BitwiseOr": {"i": Op.BitwiseOr, "u": Op.BitwiseOr, "b": Op.LogicalOr},
    "BitwiseXor": {"i": Op.BitwiseXor, "u": Op.BitwiseXor, "b": Op.LogicalNotEqual},
    "LShift": {"i": Op.ShiftLeftLogical, "u": Op.ShiftLeftLogical},
    "RShift": {"i": Op.ShiftRightArithmetic, "u": Op.ShiftRightLogical},
}
EXTREMA: dict[str, dict[str, Glsl]] = {
    "Min": {"i": Glsl.SMin, "u": Glsl.UMin, "f": Glsl.FMin},
    "Max": {"i": Glsl.SMax, "u": Glsl.UMax, "f": Glsl.FMax},
}
COMPARE: dict[str, dict[str, Op]] = {
    "LT": {"i": Op.SLessThan, "u": Op.ULessThan, "f": Op.FOrdLessThan},
    "LE": {"i": Op.SLessThanEqual, "u": Op.ULessThanEqual, "f": Op.FOrdLessThanEqual},
    "EQ": {"i": Op.IEqual, "u": Op.IEqual, "f": Op.FOrdEqual, "b": Op.LogicalEqual},
    "NE": {"i": Op.INotEqual, "u": Op.INotEqual, "f": Op.FUnordNotEqual, "b": Op.LogicalNotEqual},
}
REVERSED = {"GT": "LT", "GE": "LE"}

# The low 32 bits of the result depend on the operands' low 32 bits alone.
MODULAR = {Op.IAdd, Op.ISub, Op.IMul, Op.BitwiseAnd, Op.BitwiseOr, Op.BitwiseXor}


def _of_kind(table: dict[str, dict[str, IntEnum]], name: str, dtype: np.dtype) -> IntEnum:
    if dtype.kind not in table[name]:
        raise Unsupported(f"{name} of {dtype}")
    return table[name][dtype.kind]


@dataclass(frozen=True)
class Value:
    """What an expression computes: ``ids`` has one id a lane. Integers are within ``interval``; ``low`` are the low 32
    bits of int64 lanes, as int32, and ``wide`` are float16 lanes as float32."""

    dtype: np.dtype
    ids: tuple[int, ...]
    interval: Interval = (0, 0)
    low: tuple[int, ...] = ()
    wide: tuple[int, ...] = ()

    @property
    def narrow(self) -> bool:
        """Whether ``low`` holds all that the int64 lanes do."""
        return self.dtype == INT64 and narrowing.fits(self.interval)

    def lanes(self, chosen: Sequence[int]) -> Value:
        """Take the lanes at these positions."""
        ids, low, wide = (tuple(x[i] for i in chosen) if x else () for x in (self.ids, self.low, self.wide))
        return Value(self.dtype, ids, self.interval, low, wide)


class Arithmetic:
    """Writes instructions that compute values. Of an int64 value both the full and the low form are written, of a
    float16 one both forms of either width; whichever nobody uses, the assembler leaves out. A device may have memory of
    float16 and yet no arithmetic: float16 is selected and kept as float32, and as itself only loaded, stored and
    converted unless a kernel computes in it."""

    def __init__(self, assembler: Assembler):
        self.assembler = assembler

    # Making values

    def value(self, dtype: np.dtype, ids: Sequence[int], interval: Interval | None = None) -> Value:
        """Make a value of ids in the full width of their dtype."""
        if dtype == FLOAT16:
            return Value(dtype, tuple(ids), wide=self._each(Op.FConvert, FLOAT32, ids))
        if dtype.kind == "f":
            return Value(dtype, tuple(ids))
        low = self._each(Op.SConvert, INT32, ids) if dtype == INT64 else ()
        return Value(dtype, tuple(ids), interval or narrowing.dtype_range(dtype), low)

    def narrow_value(self, low: Sequence[int], interval: Interval) -> Value:
        """Make an int64 value of int32 ids."""
        return Value(INT64, self._each(Op.SConvert, INT64, low), interval, tuple(low))

    def int64_value(self, words: int) -> Value:
        """Make an int64 value of a vector of its low and its high 32 bits."""
        full = self.assembler.pure(Op.Bitcast, self.assembler.type(INT64), words)
        low, _ = self.components(words, UINT32, 2)
        return Value(INT64, (full,), narrowing.dtype_range(INT64), self._each(Op.Bitcast, INT32, [low]))

    def vectors(self, dtype: np.dtype, vectors: Sequence[int], width: int) -> Value:
        """Make a value of the lanes of vectors, or of scalars where ``width`` is 1."""
        if width == 1:
            return self.value(dtype, vectors)
        ids = [x for vector in vectors for x in self.components(vector, dtype, width)]
        if dtype != FLOAT16:
            return self.value(dtype, ids)
        widened = [self.assembler.pure(Op.FConvert, self.assembler.type(FLOAT32, width), x) for x in vectors]
        return Value(dtype, tuple(ids), wide=self.vectors(FLOAT32, widened, width).ids)

    def float16_value(self, wide: Sequence[int]) -> Value:
        """Make a float16 value of float32 ids that float16 holds exactly."""
        return Value(FLOAT16, self._each(Op.FConvert, FLOAT16, wide), wide=tuple(wide))

    def constant(self, dtype: np.dtype, value: float) -> Value:
        ids = (self.assembler.constant(dtype, value),)
        if dtype == FLOAT16:
            return Value(dtype, ids, wide=(self.assembler.constant(FLOAT32, np.float16(value)),))
        if dtype.kind == "f":
            return Value(dtype, ids)
        low = (self.assembler.constant(INT32, value),) if dtype == INT64 else ()
        return Value(dtype, ids, (int(value), int(value)), low)

    def join(self, parts: Sequence[Value]) -> Value:
        """Make a value of the lanes of all parts, one part after the other."""
        interval = parts[0].interval
        for part in parts[1:]:
            interval = narrowing.union(interval, part.interval)
        ids, low, wide = (tuple(x for part in parts for x in getattr(part, name)) for name in ("ids", "low", "wide"))
        return Value(parts[0].dtype, ids, interval, low, wide)

    def _each(self, op: Op, dtype: np.dtype, *operands: Sequence[int]) -> tuple[int, ...]:
        """Write one instruction a lane."""
        result = self.assembler.type(dtype)
        return tuple(self.assembler.pure(op, result, *lane) for lane in zip(*operands, strict=True))

    # Operators

    def binary(self, name: str, a: Value, b: Value) -> Value:
        """Compute an operator of ``BINARY``. What TIR leaves open may be anything: division by zero, shifts by more
        than the operand has bits."""
        op = _of_kind(BINARY, name, a.dtype)
        if a.dtype.kind in "fb":
            return self.value(a.dtype, self._each(op, a.dtype, a.ids, b.ids), (0, 1))
        interval = narrowing.interval_of(op, a.interval, b.interval, a.dtype)
        if interval[0] == interval[1]:
            return self.join([self.constant(a.dtype, interval[0])] * len(a.ids))
        if a.dtype != INT64:
            return Value(a.dtype, self._each(op, a.dtype, a.ids, b.ids), interval)
        modular = op in MODULAR or op == Op.ShiftLeftLogical
        short_shift = op not in (Op.ShiftLeftLogical, Op.ShiftRightArithmetic) or (
            b.interval[0] >= 0 and b.interval[1] < 32
        )
        if short_shift and (modular or (a.narrow and b.narrow and narrowing.fits(interval))):
            low = self._each(op, INT32, a.low, b.low)
            if narrowing.fits(interval):
                return self.narrow_value(low, interval)
            return Value(INT64, self._each(op, INT64, a.ids, b.ids), interval, low)
        return self.value(INT64, self._each(op, INT64, a.ids, b.ids), interval)

    def extremum(self, name: str, a: Value, b: Value) -> Value:
        """Compute Min or Max."""
        instruction = _of_kind(EXTREMA, name, a.dtype)
        choose = min if name == "Min" else max
        interval = choose(a.interval[0], b.interval[0]), choose(a.interval[1], b.interval[1])
        if a.dtype.itemsize == 8 and a.dtype.kind != "f" and not (a.narrow and b.narrow):
            chosen = self.select(self.compare("LT" if name == "Min" else "GT", a, b), a, b)
            return dataclasses.replace(chosen, interval=interval)
        if a.narrow:
            return self.narrow_value(self.glsl_lanes(instruction, INT32, a.low, b.low), interval)
        return self.value(a.dtype, self.glsl_lanes(instruction, a.dtype, a.ids, b.ids), interval)

    def compare(self, name: str, a: Value, b: Value) -> Value:
        """Compute LT, LE, GT, GE, EQ or NE. 64-bit integers that need not fit in 32 bits are compared in two steps, by
        their high and by their low 32 bits."""
        if name in REVERSED:
            return self.compare(REVERSED[name], b, a)
        dtype, x, y = a.dtype, a.ids, b.ids
        if dtype == FLOAT16:
            dtype, x, y = FLOAT32, a.wide, b.wide
        elif a.narrow and b.narrow:
            dtype, x, y = INT32, a.low, b.low
        elif dtype.itemsize == 8 and dtype.kind in "iu":
            return Value(
                BOOL, tuple(self._compare_by_words(name, dtype, *pair) for pair in zip(x, y, strict=True)), (0, 1)
            )
        return Value(BOOL, self._each(_of_kind(COMPARE, name, dtype), BOOL, x, y), (0, 1))

    def _compare_by_words(self, name: str, dtype: np.dtype, x: int, y: int) -> int:
        pure, boolean = self.assembler.pure, self.assembler.type(BOOL)
        (low_x, high_x), (low_y, high_y) = self._split(x), self._split(y)
        same = pure(Op.IEqual, boolean, high_x, high_y)
        if name in ("EQ", "NE"):
            equal = pure(Op.LogicalAnd, boolean, same, pure(Op.IEqual, boolean, low_x, low_y))
            return equal if name == "EQ" else pure(Op.LogicalNot, boolean, equal)
        low = pure(COMPARE[name]["u"], boolean, low_x, low_y)
        high = pure(COMPARE["LT"][dtype.kind], boolean, high_x, high_y)
        return pure(Op.LogicalOr, boolean, high, pure(Op.LogicalAnd, boolean, same, low))

    def _split(self, x: int) -> list[int]:
        """Take the low and the high 32 bits of a 64-bit integer."""
        return self.components(self.assembler.pure(Op.Bitcast, self.assembler.type(UINT32, 2), x), UINT32, 2)

    def invert(self, a: Value) -> Value:
        """Invert all bits of an integer, or a truth value."""
        if a.dtype.kind == "b":
            return Value(BOOL, self._each(Op.LogicalNot, BOOL, a.ids), (0, 1))
        return self.value(a.dtype, self._each(Op.Not, a.dtype, a.ids))

    def select(self, condition: Value, a: Value, b: Value) -> Value:
        """Choose between ``a`` and ``b`` lane by lane; a single condition holds for all lanes."""
        chosen = condition.ids * (len(a.ids) // len(condition.ids))
        interval = narrowing.union(a.interval, b.interval)
        if a.narrow and b.narrow:
            return self.narrow_value(self._each(Op.Select, INT32, chosen, a.low, b.low), interval)
        if a.dtype == FLOAT16:
            return self.float16_value(self._each(Op.Select, FLOAT32, chosen, a.wide, b.wide))
        return self.value(a.dtype, self._each(Op.Select, a.dtype, chosen, a.ids, b.ids), interval)

    def merge(self, a: Value, from_a: int, b: Value, from_b: int) -> Value:
        """At the start of a block, take the value of the block that led to it: ``a`` after ``from_a``, ``b`` after
        ``from_b``."""

        def phis(dtype: np.dtype, x: Sequence[int], y: Sequence[int]) -> list[int]:
            result = self.assembler.type(dtype)
            return [self.assembler.result(Op.Phi, result, p, from_a, q, from_b) for p, q in zip(x, y, strict=True)]

        interval = narrowing.union(a.interval, b.interval)
        if a.narrow and b.narrow:
            return self.narrow_value(phis(INT32, a.low, b.low), interval)
        if a.dtype == FLOAT16:
            return self.float16_value(phis(FLOAT32, a.wide, b.wide))
        return self.value(a.dtype, phis(a.dtype, a.ids, b.ids), interval)

    def glsl(self, instruction: Glsl, *operands: Value) -> Value:
        """Compute a function of GLSL.std.450 of floats."""
        dtype = operands[0].dtype
        return self.value(dtype, self.glsl_lanes(instruction, dtype, *(operand.ids for operand in operands)))

    def glsl_lanes(self, instruction: Glsl, dtype: np.dtype, *operands: Sequence[int]) -> tuple[int, ...]:
        result = self.assembler.type(dtype)
        return tuple(self.assembler.glsl(instruction, result, *lane) for lane in zip(*operands, strict=True))

    def is_nan(self, a: Value) -> Value:
        return Value(BOOL, self._each(Op.IsNan, BOOL, a.ids), (0, 1))

    # Conversions

    def cast(self, a: Value, dtype: np.dtype) -> Value:
        if a.dtype == dtype:
            return a
        if a.dtype.kind == "b":
            return self.select(a, *(self.join([self.constant(dtype, x)] * len(a.ids)) for x in (1, 0)))
        if dtype.kind == "b":
            return self.compare("NE", a, self.join([self.constant(a.dtype, 0)] * len(a.ids)))
        if a.dtype == FLOAT16:
            return self.cast(Value(FLOAT32, a.wide), dtype)
        if a.dtype.kind == "f":
            op = {"f": Op.FConvert, "i": Op.ConvertFToS, "u": Op.ConvertFToU}[dtype.kind]
            return self.value(dtype, self._each(op, dtype, a.ids))
        if dtype == FLOAT16:
            return self.cast(self.cast(a, FLOAT32), dtype)  # exact wherever float16 is
        if dtype.kind == "f":
            source, ids = (INT32, a.low) if a.narrow else (a.dtype, a.ids)
            return Value(dtype, self._each(Op.ConvertSToF if source.kind == "i" else Op.ConvertUToF, dtype, ids))
        return self._cast_integer(a, dtype)

    def _cast_integer(self, a: Value, dtype: np.dtype) -> Value:
        interval = narrowing.within(dtype, a.interval)
        if a.dtype == INT64 and dtype.itemsize <= 4:
            return Value(dtype, self._resize(INT32, dtype, a.low), interval)
        if dtype == INT64 and a.dtype.itemsize <= 4:
            low = self._resize(a.dtype, INT32, a.ids)
            if narrowing.fits(interval):
                return self.narrow_value(low, interval)
            return Value(INT64, self._resize(a.dtype, INT64, a.ids), interval, low)
        return self.value(dtype, self._resize(a.dtype, dtype, a.ids), interval)

    def _resize(self, source: np.dtype, dtype: np.dtype, ids: Sequence[int]) -> tuple[int, ...]:
        """Cut integers to another dtype, or extend them by the sign of their own."""
        if source.itemsize != dtype.itemsize:
            resized = np.dtype(f"{source.kind}{dtype.itemsize}")
            ids = self._each(Op.SConvert if source.kind == "i" else Op.UConvert, resized, ids)
            source = resized
        return tuple(ids) if source == dtype else self._each(Op.Bitcast, dtype, ids)

    def reinterpret(self, a: Value, dtype: np.dtype) -> Value:
        """Take the same bits, lowest first, for as many lanes of another dtype as they make."""
        if a.dtype.itemsize == dtype.itemsize:
            return a if a.dtype == dtype else self.value(dtype, self._each(Op.Bitcast, dtype, a.ids))
        if a.dtype.itemsize > 4 * dtype.itemsize or dtype.itemsize > 4 * a.dtype.itemsize:
            return self.reinterpret(self.reinterpret(a, UINT32), dtype)  # vectors have four components at most
        if a.dtype.itemsize > dtype.itemsize:
            pieces = a.dtype.itemsize // dtype.itemsize
            vectors = [self.assembler.pure(Op.Bitcast, self.assembler.type(dtype, pieces), x) for x in a.ids]
            return self.value(dtype, [x for vector in vectors for x in self.components(vector, dtype, pieces)])
        pieces = dtype.itemsize // a.dtype.itemsize
        grouped = [a.ids[i : i + pieces] for i in range(0, len(a.ids), pieces)]
        return self.value(dtype, self._each(Op.Bitcast, dtype, [self.compose(a.dtype, ids) for ids in grouped]))

    def components(self, vector: int, dtype: np.dtype, lanes: int) -> list[int]:
        result = self.assembler.type(dtype)
        return [self.assembler.pure(Op.CompositeExtract, result, vector, Literal(i)) for i in range(lanes)]

    def compose(self, dtype: np.dtype, ids: Sequence[int]) -> int:
        return self.assembler.pure(Op.CompositeConstruct, self.assembler.type(dtype, len(ids)), *ids)

    def vector(self, a: Value) -> int:
        """Make one vector of all lanes; a single lane stays a scalar."""
        if len(a.ids) == 1:
            return a.ids[0]
        if a.dtype == FLOAT16:
            vector = self.assembler.type(FLOAT16, len(a.ids))
            return self.assembler.pure(Op.FConvert, vector, self.compose(FLOAT32, a.wide))
        return self.compose(a.dtype, a.ids)

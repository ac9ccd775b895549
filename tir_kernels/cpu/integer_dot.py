"""Dot products of four bytes a lane: one function for each instruction set that has one, chosen by target features.

Each takes (acc, weights, digits), all int32x16, and returns acc + the sums of four products in every lane: unsigned bytes
of ``weights`` by signed bytes of ``digits``, which lie between -64 and 64.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm.script.ir_builder import tirx as T

from ..builder import span, splat
from .simd import LANES, intrinsic, registers


def as_bytes(weights, digits, lanes: int) -> tuple:
    return T.reinterpret(weights, dtype=f"uint8x{4 * lanes}"), T.reinterpret(digits, dtype=f"int8x{4 * lanes}")


def on_registers(dot: Callable, lanes: int) -> Callable:
    """``dot``, which takes vectors of ``lanes`` int32, on 16 lanes.

    The sums pass through an array: TVM's analysis of a chain of vectors that are halved and joined takes exponential
    time."""
    if lanes == LANES:
        return dot

    def in_parts(acc, weights, digits):
        weights, digits, sums = T.bind(weights), T.bind(digits), registers((LANES,), "int32")
        T.buffer_store(sums, acc, [span(0, LANES)])
        for first in range(0, LANES, lanes):
            at, part = span(first, lanes), list(range(first, first + lanes))
            T.buffer_store(sums, dot(sums[at], T.Shuffle([weights], part), T.Shuffle([digits], part)), [at])
        return sums[span(0, LANES)]

    return in_parts


def accumulating(name: str, lanes: int) -> Callable:
    """One instruction that does it all."""

    def dot(acc, weights, digits):
        return intrinsic(name, f"int32x{lanes}", acc, *as_bytes(weights, digits, lanes))

    return on_registers(dot, lanes)


def pairwise(multiply: str, add: str, lanes: int) -> Callable:
    """Two instructions: one adds pairs of products in 16 bits, where 2 x 255 x 64 fit, the other adds the pairs."""

    def dot(acc, weights, digits):
        pairs = intrinsic(multiply, f"int16x{2 * lanes}", *as_bytes(weights, digits, lanes))
        return acc + intrinsic(add, f"int32x{lanes}", pairs, splat(T.int16(1), 2 * lanes))

    return on_registers(dot, lanes)


def dot_sdot(acc, weights, digits):
    """Arm's product of signed bytes."""
    return intrinsic("llvm.aarch64.neon.sdot", "int32x4", acc, *as_bytes(weights, digits, 4))


def dot_sdot_of_bytes(acc, weights, digits):
    """Weights as signed bytes, 128 less than they are."""
    missing = dot_sdot(splat(T.int32(0), 4), splat(T.int32(0x80808080 - 2**32), 4), digits)
    weights = T.bitwise_xor(T.reinterpret(weights, dtype="uint32x4"), splat(T.uint32(0x80808080), 4))
    return dot_sdot(acc - missing, weights, digits)


INTEGER_DOTS = {
    "vnni": accumulating("llvm.x86.avx512.vpdpbusd.512", 16),
    "avx512": pairwise("llvm.x86.avx512.pmaddubs.w.512", "llvm.x86.avx512.pmaddw.d.512", 16),
    "avxvnni": accumulating("llvm.x86.avx512.vpdpbusd.256", 8),
    "avx2": pairwise("llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd", 8),
    "ssse3": pairwise("llvm.x86.ssse3.pmadd.ub.sw.128", "llvm.x86.sse2.pmadd.wd", 4),
    "usdot": accumulating("llvm.aarch64.neon.usdot", 4),
    "sdot": on_registers(dot_sdot, 4),  # weights below 128 only
    "sdot_of_bytes": on_registers(dot_sdot_of_bytes, 4),
}

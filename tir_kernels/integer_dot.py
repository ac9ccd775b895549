"""Dot products of four bytes a lane: one function for each instruction set that has one, chosen by target features.

Each takes (acc, weights, digits), all int32x16, and returns acc + the sums of four products in every lane: unsigned bytes
of ``weights`` by signed bytes of ``digits``, which lie between -64 and 64.
"""

from __future__ import annotations

from tvm.script.ir_builder import tirx as T

from .simd import intrinsic, splat


def dot_vnni(acc, weights, digits):
    """acc + the sums of four products, unsigned bytes of ``weights`` by signed bytes of ``digits``; all int32x16."""
    operands = T.reinterpret(weights, dtype="uint8x64"), T.reinterpret(digits, dtype="int8x64")
    return intrinsic("llvm.x86.avx512.vpdpbusd.512", "int32x16", acc, *operands)


def dot_avx512(acc, weights, digits):
    """The same on AVX-512 BW; digits of at most 64 keep the sums of two within 16 bits."""
    operands = T.reinterpret(weights, dtype="uint8x64"), T.reinterpret(digits, dtype="int8x64")
    pairs = intrinsic("llvm.x86.avx512.pmaddubs.w.512", "int16x32", *operands)
    return acc + intrinsic("llvm.x86.avx512.pmaddw.d.512", "int32x16", pairs, splat(T.int16(1), 32))


INTEGER_DOTS = {"vnni": dot_vnni, "avx512": dot_avx512}

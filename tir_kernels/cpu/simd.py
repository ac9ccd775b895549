"""Vector expressions that the CPU kernels are written in.

A kernel is a Python function that builds TIR: Python loops unroll, ``T`` frames loop at run time. Vectors have up to
16 lanes; LLVM splits them where the machine's registers are narrower.
"""

from __future__ import annotations

import math
from functools import reduce

from tvm.script.ir_builder import tirx as T

from ..builder import cast, constant, splat, vector_type

LANES = 16


def registers(shape: tuple[int, ...], dtype: str = "float32"):
    """A small array that lives in registers where every index is constant.

    TVM puts "global" arrays of less than 1024 bytes on the stack, from where LLVM promotes them; larger ones and those of
    any other scope come from a heap workspace, and every update goes to memory."""
    return T.alloc_buffer(shape, dtype, scope="global")


def vector_width(extent: int) -> int:
    """The widest vector, up to ``LANES``, that divides an extent."""
    return math.gcd(extent, LANES)


def intrinsic(name: str, dtype: str, *args):
    """A call of an LLVM intrinsic without side effects."""
    return T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id(name), *args, dtype=dtype)


def prefetch(address, level: int = 1) -> None:
    """Ask for the cache line at an address, to be read soon, into the cache of ``level``."""
    name = T.llvm_lookup_intrinsic_id("llvm.prefetch")
    T.evaluate(T.call_llvm_intrin(name, address, T.int32(0), T.int32(4 - level), T.int32(1), dtype="void"))


def exp(x, width: int):
    """exp(x) of float32 lanes, relative error 1e-7: Cephes' expf, with x clamped to +-87."""
    x = T.bind(T.max(T.min(x, constant(87.0, width)), constant(-87.0, width)))
    n = T.bind(T.floor(x * constant(1.44269504088896341, width) + constant(0.5, width)))
    f = T.bind(x - n * constant(0.693359375, width) - n * constant(-2.12194440e-4, width))
    series = constant(1.9875691500e-4, width)
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        series = series * f + constant(c, width)
    power = (cast(n, "int32", width) + splat(T.int32(127), width)) << splat(T.int32(23), width)
    return T.bind(
        (series * f * f + f + constant(1.0, width)) * T.reinterpret(power, dtype=vector_type("float32", width))
    )


def sum_lanes(x):
    """Sum of int32 lanes."""
    return intrinsic("llvm.vector.reduce.add", "int32", x)


def reduce_add(x, width: int, dtype: str = "float32"):
    """Sum of the lanes of floats, pairwise."""
    if width == 1:
        return x
    while width > 2:
        width //= 2
        part = vector_type(dtype, width)
        x = T.bind(T.vectorlow(part, x) + T.vectorhigh(part, x))
    return T.Shuffle([x], [0]) + T.Shuffle([x], [1])


def largest_magnitude(values: list, width: int):
    """max |x| over the lanes of all vectors. The order of magnitudes is that of their bits, and integers have the faster
    horizontal maximum."""
    bits = [T.reinterpret(T.fabs(value), dtype=vector_type("int32", width)) for value in values]
    return T.bind(T.reinterpret(intrinsic("llvm.vector.reduce.smax", "int32", reduce(T.max, bits)), dtype="float32"))

"""The running average of RWKV-4's wkv: a numerator and a denominator, both scaled by e^-p, p the largest exponent so far."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.script.ir_builder import tirx as T


def with_term(
    average: tuple[tirx.PrimExpr, tirx.PrimExpr, tirx.PrimExpr],
    exponent: tirx.PrimExpr,
    value: tirx.PrimExpr,
    exp: Callable[[tirx.PrimExpr], tirx.PrimExpr],
) -> tuple[tirx.PrimExpr, tirx.PrimExpr, tirx.PrimExpr]:
    """(a, b, p) after e^exponent value is added to the numerator and e^exponent to the denominator; nothing that ``exp``
    is asked for is above 1. The arguments are bound variables."""
    a, b, p = average
    top = T.bind(T.max(p, exponent))
    old, new = exp(p - top), exp(exponent - top)
    return old * a + new * value, old * b + new, top

"""Defining kernels: ``@prim_func`` turns a Python function that emits statements into a scheduled PrimFunc."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T


def prim_func(
    emit: Callable[[], None] | None = None, *, own: tuple[str, ...] = (), replicated: bool = False
) -> tirx.PrimFunc | Callable:
    """Run ``emit`` inside a new function and return the function; a decorator, with or without the keywords.

    The result is private, opaque to fusion and marked as scheduled, so that no later rule touches it. Its attribute
    ``kernel`` is the name of the factory that defines ``emit``. The others tell how kernels may be merged into one parallel
    region: ``own`` names "reads" and "writes" where, for a single row, iteration i of E of the parallel loop reads or
    writes no more than part i of E equal parts of the channels, and "loops" where several parallel loops do not depend on
    each other; ``replicated`` that what is outside the parallel loop
    binds variables and does nothing else."""
    if emit is None:
        return partial(prim_func, own=own, replicated=replicated)
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        merging = {"kernel": emit.__qualname__.partition(".")[0], "own": own, "replicated": replicated}
        T.func_attr({**merging, "op_pattern": 8, "tirx.noalias": True, "tirx.is_scheduled": True})
        emit()
    return builder.get()


def arg(name: str, shape: tuple, dtype: str = "float32"):
    """Declare the next argument, a buffer; extents may be symbolic int64 variables."""
    return T.arg(name, T.Buffer(shape, dtype))


@contextmanager
def root_block() -> Iterator[None]:
    """Run the body in the block that encloses a CPU kernel; what it reads and writes is left open."""
    with T.sblock("root"):
        T.reads()
        T.writes()
        yield


def size(name: str) -> tirx.Var:
    """A symbolic extent; GPU code calls it by its name."""
    return tirx.Var(name, "int64")


def span(base, width: int):
    """Index of ``width`` consecutive elements."""
    return base if width == 1 else T.ramp(base, 1, width)


def splat(value, width: int):
    """One value in every lane."""
    return value if width == 1 else T.broadcast(value, width)


def constant(value: float, width: int):
    """A float32 number in every lane."""
    return splat(T.float32(value), width)


def cast(value, dtype: str, width: int):
    """Every lane of a vector as ``dtype``."""
    return tirx.Cast(vector_type(dtype, width), value)


def vector_type(dtype: str, width: int) -> str:
    """The type of ``width`` lanes of ``dtype``."""
    return dtype if width == 1 else f"{dtype}x{width}"

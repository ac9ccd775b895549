"""Defining kernels: ``@prim_func`` turns a Python function that emits statements into a scheduled PrimFunc."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T


def prim_func(emit: Callable[[], None]) -> tirx.PrimFunc:
    """Run ``emit`` inside a new function and return the function.

    The result is private, opaque to fusion and marked as scheduled, so that no later rule touches it. Its attribute
    ``kernel`` is the name of the factory that defines ``emit``."""
    with IRBuilder() as builder:
        with T.prim_func(is_private=True, s_tir=True):
            name = emit.__qualname__.partition(".")[0]
            T.func_attr({"kernel": name, "op_pattern": 8, "tirx.noalias": True, "tirx.is_scheduled": True})
            emit()
    return builder.get()


def arg(name: str, shape: tuple, dtype: str = "float32"):
    """Declare the next argument, a buffer; extents may be symbolic int64 variables."""
    return T.arg(name, T.Buffer(shape, dtype))


def registers(shape: tuple[int, ...], dtype: str = "float32", device: str = "cpu"):
    """A small array that lives in registers where every index is constant.

    On a CPU, TVM puts "global" arrays of less than 1024 bytes on the stack, from where LLVM promotes them; larger ones and
    those of any other scope come from a heap workspace, and every update goes to memory."""
    return T.alloc_buffer(shape, dtype, scope="global" if device == "cpu" else "local")

"""Finds the memory that is accessed in aligned vectors only, and can be loaded and stored vector by vector."""

from __future__ import annotations

import math

import tvm_ffi
from tvm import ir, tirx
from tvm.sym import Analyzer

MAX_VECTOR = 4


def vector_widths(body: tirx.Stmt) -> dict[tirx.Var, int]:
    """For every buffer in a function's body, find the widest vector of up to ``MAX_VECTOR`` lanes that all its accesses
    consist of: ramps of consecutive elements that begin at its multiples. Buffers that share memory have one width."""
    analyzer = Analyzer()
    source: dict[tirx.Var, tirx.Var] = {}
    widths: dict[tirx.Var, int] = {}

    def root(buffer: tirx.Var) -> tirx.Var:
        return source.get(buffer, buffer)

    def declare(statement: tirx.DeclBuffer) -> None:
        source[statement.buffer] = root(pointer_of(statement))

    def access(buffer: tirx.Var, indices: list[tirx.Expr]) -> None:
        lanes = aligned_lanes(index_of_elements(buffer, indices[-1]), analyzer)
        widths[root(buffer)] = math.gcd(widths.get(root(buffer), MAX_VECTOR), lanes)

    def bind(statement: tirx.Bind) -> None:
        if statement.var.ty.dtype.is_integer:
            analyzer.bind(statement.var, statement.value)

    tvm_ffi.structural_walk(body, [(tirx.DeclBuffer, declare), (tirx.Bind, bind)])
    tvm_ffi.structural_walk(
        body,
        [
            (ir.TensorLoad, lambda load: access(load.source, load.indices)),
            (tirx.BufferStore, lambda store: access(store.buffer, store.indices)),
        ],
    )
    return {**widths, **{buffer: widths[origin] for buffer, origin in source.items() if origin in widths}}


def pointer_of(statement: tirx.DeclBuffer) -> tirx.Var:
    """The variable that a declared buffer is a view of."""
    pointer = statement.data
    while isinstance(pointer, ir.Call):
        pointer = pointer.args[0]
    return pointer


def index_of_elements(buffer: tirx.Var, index: tirx.Expr) -> tirx.Expr:
    """An access's index, counted in elements where TVM has made vectors of the elements of an array."""
    lanes = buffer.dtype.lanes
    return index if lanes == 1 else tirx.Ramp(index * lanes, tirx.const(1, index.ty.dtype), lanes)


def aligned_lanes(index: tirx.Expr, analyzer: Analyzer) -> int:
    """The widest aligned vector, up to ``MAX_VECTOR``, that an access at this index consists of."""
    if not isinstance(index, tirx.Ramp) or not isinstance(index.stride, tirx.IntImm) or int(index.stride) != 1:
        return 1
    beginnings = analyzer.modular_set(index.base)
    return math.gcd(int(index.lanes), beginnings.coeff, beginnings.base, MAX_VECTOR)

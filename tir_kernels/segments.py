"""Where the tokens of each sequence lie among the rows of a ragged prefill, and which state slot each uses."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .builder import arg, prim_func, registers, size
from .threads import THREADS, grid


def sequence(b, slots, segment_ends):
    """State slot, first row and number of rows of sequence b, as int64 expressions inside a kernel, each of which provably
    fits in 32 bits.

    Without ``slots`` sequence b has slot b; without ``segment_ends`` it is the one row b."""
    slot = b if slots is None else T.bind(T.cast(slots[b], "int64"))
    if segment_ends is None:
        return slot, b, 1
    first = T.bind(T.if_then_else(b == 0, T.int64(0), T.cast(segment_ends[T.max(b - 1, T.int64(0))], "int64")))
    length = T.max(segment_ends[b] - T.cast(first, "int32"), T.int32(0))
    return slot, first, T.bind(T.cast(length, "int64"))


def sequence_of(t, segment_ends, batch):
    """The sequence that row t belongs to, its first and its last row; int64, inside a GPU kernel."""
    before = registers((1,), "int32", device="gpu")
    T.buffer_store(before, T.int32(0), [0])
    with T.serial(0, batch) as b:
        ended = segment_ends[b] <= T.cast(t, "int32")
        T.buffer_store(before, before[0] + T.Select(ended, T.int32(1), T.int32(0)), [0])
    b = T.bind(T.cast(T.max(before[0], T.int32(0)), "int64"))
    _, first, _ = sequence(b, None, segment_ends)
    return b, first, T.bind(T.cast(T.max(segment_ends[b], T.int32(1)) - 1, "int64"))


@lru_cache(None)
def border_slots() -> tirx.PrimFunc:
    """(tokens, segment_ends, slots -> first_slots, last_slots), all int32.

    tokens [T] (only its length counts), segment_ends and slots [B]; first_slots[t] is the slot of the sequence that
    begins at row t, last_slots[t] of the one that ends there, both [T] and -1 elsewhere."""

    @prim_func
    def kernel():
        batch, rows = T.int64(), T.int64()
        arg("tokens", (rows,), "int32")
        ends = arg("segment_ends", (batch,), "int32")
        slots = arg("slots", (batch,), "int32")
        first_slots = arg("first_slots", (rows,), "int32")
        last_slots = arg("last_slots", (rows,), "int32")
        with T.sblock("root"):
            T.reads()
            T.writes()
            with T.serial(0, rows) as t:
                T.buffer_store(first_slots, T.int32(-1), [t])
                T.buffer_store(last_slots, T.int32(-1), [t])
            with T.serial(0, batch) as b:
                _, first, length = sequence(b, None, ends)
                T.buffer_store(first_slots, slots[b], [first])
                T.buffer_store(last_slots, slots[b], [first + length - 1])

    return kernel


@lru_cache(None)
def last_rows(channels: int) -> tirx.PrimFunc:
    """(x float32 [1, T, C], segment_ends int32 [B] -> out [1, B, C]): the last row of every sequence."""

    @prim_func
    def kernel():
        batch, rows = T.int64(), T.int64()
        x = arg("x", (1, rows, channels))
        ends = arg("segment_ends", (batch,), "int32")
        out = arg("out", (1, batch, channels))
        with T.sblock("root"):
            T.reads()
            T.writes()
            with T.serial(0, batch) as b, T.serial(0, channels) as c:
                T.buffer_store(out, x[0, T.cast(ends[b], "int64") - 1, c], [0, b, c])

    return kernel


@lru_cache(None)
def last_rows_gpu(channels: int) -> tirx.PrimFunc:
    """``last_rows`` with a thread for every element."""

    @prim_func
    def kernel():
        batch, rows = size("batch"), size("rows")
        x = arg("x", (1, rows, channels))
        ends = arg("segment_ends", (batch,), "int32")
        out = arg("out", (1, batch, channels))
        with grid(batch, -(-channels // THREADS)) as (b, block, thread):
            c = T.bind(block * THREADS + thread)
            with T.If(c < channels), T.Then():
                T.buffer_store(out, x[0, T.cast(ends[b], "int64") - 1, c], [0, b, c])

    return kernel

"""Finds the rows of a ragged prefill that begin and end a sequence, and the state of each."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, prim_func, root_block
from ..segments import sequence


@lru_cache(None)
def border_slots(in_place: bool = False) -> tirx.PrimFunc:
    """(tokens, segment_ends -> first, last), all int32: where ``norm_shift_mix`` reads and writes states.

    tokens [T] (only its length counts), segment_ends [B]; first[t] is the number of the sequence that begins at row t, last[t]
    of the one that ends there, both [T] and -1 elsewhere. With ``in_place``, ``slots`` [B] follow segment_ends, and the slot
    of a sequence takes the place of its number."""

    @prim_func
    def kernel():
        batch, rows = T.int64(), T.int64()
        arg("tokens", (rows,), "int32")
        ends = arg("segment_ends", (batch,), "int32")
        slots = arg("slots", (batch,), "int32") if in_place else None
        first_slots = arg("first_slots", (rows,), "int32")
        last_slots = arg("last_slots", (rows,), "int32")
        with root_block():
            with T.serial(0, rows) as t:
                T.buffer_store(first_slots, T.int32(-1), [t])
                T.buffer_store(last_slots, T.int32(-1), [t])
            with T.serial(0, batch) as b:
                _, first, length = sequence(b, None, ends)
                slot = slots[b] if in_place else T.cast(b, "int32")
                T.buffer_store(first_slots, slot, [first])
                T.buffer_store(last_slots, slot, [first + length - 1])

    return kernel

"""What TVM's ``RNNState`` copies states with: out of the slots of a call's sequences, and back into the slots that follow."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, prim_func, root_block, size, span
from .simd import vector_width


@lru_cache(None)
def state_get(shape: tuple[int, ...]) -> tirx.PrimFunc:
    """(storage [S, history, *shape], slots int32 [B], history_slots int32 [B] -> out [B, *shape]), float32."""

    @prim_func
    def kernel():
        storage, slots, history, _, batch = _arguments(shape)
        out = arg("out", (batch, *shape))

        def copy(b, at: list):
            T.buffer_store(out, storage[T.cast(slots[b], "int64"), T.cast(history[b], "int64"), *at], [b, *at])

        _each(batch, shape, copy)

    return kernel


@lru_cache(None)
def state_set(shape: tuple[int, ...]) -> tirx.PrimFunc:
    """(storage [S, history, *shape], slots int32 [B], history_slots int32 [B], data [B, *shape]), float32: writes the slot
    of the history after each sequence's own."""

    @prim_func
    def kernel():
        storage, slots, history, length, batch = _arguments(shape)
        data = arg("data", (batch, *shape))

        def copy(b, at: list):
            following = (T.cast(history[b], "int64") + 1) % length
            T.buffer_store(storage, data[b, *at], [T.cast(slots[b], "int64"), following, *at])

        _each(batch, shape, copy)

    return kernel


def _arguments(shape: tuple[int, ...]) -> tuple:
    sequences, length, batch = size("sequences"), size("history"), size("batch")
    storage = arg("storage", (sequences, length, *shape))
    return storage, arg("slots", (batch,), "int32"), arg("history_slots", (batch,), "int32"), length, batch


def _each(batch, shape: tuple[int, ...], copy) -> None:
    """Run ``copy(sequence, indices)`` for the vectors of each state."""
    *outer, last = shape
    width = vector_width(last)
    with root_block(), T.parallel(0, batch) as b, T.grid(*outer, last // width) as indices:
        *leading, i = indices if outer else [indices]
        copy(b, [*leading, span(i * width, width)])

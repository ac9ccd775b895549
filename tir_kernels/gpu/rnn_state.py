"""Copies of states for TVM's ``RNNState``: see ``cpu.rnn_state``."""

from __future__ import annotations

import math
from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, prim_func, size
from .threads import THREADS, grid


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
    """Run ``copy(sequence, indices)`` for every element of each state, a thread each."""
    elements = math.prod(shape)
    with grid(batch, -(-elements // THREADS)) as (b, block, thread):
        element = T.bind(block * THREADS + thread)
        with T.If(element < elements), T.Then():
            indices, rest = [], element
            for extent in reversed(shape):
                indices.insert(0, rest % extent)
                rest = rest // extent
            copy(b, indices)

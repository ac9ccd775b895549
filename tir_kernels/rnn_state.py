"""What TVM's ``RNNState`` copies states with: out of the slots of a call's sequences, and back into the slots that follow.

Both take (storage [S, history, *shape], slots int32 [B], history_slots int32 [B]), float32, and run on the device whose loop
over elements ``device`` holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from types import ModuleType

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .builder import arg, prim_func, size, span


@lru_cache(None)
def state_get(shape: tuple[int, ...], device: ModuleType) -> tirx.PrimFunc:
    """(.. -> out [B, *shape]): each sequence's state."""

    @prim_func
    def kernel():
        storage, slots, history, _, batch = _arguments(shape)
        out = arg("out", (batch, *shape))

        def copy(b, at: list):
            T.buffer_store(out, storage[(T.cast(slots[b], "int64"), T.cast(history[b], "int64"), *at)], [b, *at])

        _each(batch, shape, device, copy)

    return kernel


@lru_cache(None)
def state_set(shape: tuple[int, ...], device: ModuleType) -> tirx.PrimFunc:
    """(.., data [B, *shape]): each sequence's next state, into the slot of the history after its own."""

    @prim_func
    def kernel():
        storage, slots, history, length, batch = _arguments(shape)
        data = arg("data", (batch, *shape))

        def copy(b, at: list):
            following = T.bind((T.cast(history[b], "int64") + 1) % length)
            T.buffer_store(storage, data[(b, *at)], [T.cast(slots[b], "int64"), following, *at])

        _each(batch, shape, device, copy)

    return kernel


def _arguments(shape: tuple[int, ...]) -> tuple:
    sequences, length, batch = size("sequences"), size("history"), size("batch")
    storage = arg("storage", (sequences, length, *shape))
    return storage, arg("slots", (batch,), "int32"), arg("history_slots", (batch,), "int32"), length, batch


def _each(batch, shape: tuple[int, ...], device: ModuleType, copy: Callable) -> None:
    """Run ``copy(sequence, indices)`` for the vectors of every state."""
    width = math.gcd(shape[-1], device.WIDTH)
    extents = (*shape[:-1], shape[-1] // width)
    vectors = math.prod(extents)

    def vector(i):
        at, rest = [], i % vectors
        for extent in reversed(extents):
            at.insert(0, rest % extent)
            rest = rest // extent
        copy(T.bind(i // vectors), [*at[:-1], span(at[-1] * width, width)])

    device.each(batch * vectors, vector)

"""The second half of the order of probabilities on a GPU: how many come before each, by a search in every other tile."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, prim_func, size
from .sorted_tiles import TILE
from .threads import THREADS, grid, registers


@lru_cache(None)
def merged_tiles(vocab: int) -> tirx.PrimFunc:
    """(probabilities float32 [B, V], tokens int32 [B, V], both of ``sorted_tiles`` -> sorted float32 [B, V], tokens int32
    [B, V]): the largest first, of equal ones the first."""
    tiles = -(-vocab // TILE)

    @prim_func
    def kernel():
        batch = size("batch")
        probs, given = arg("probs", (batch, vocab)), arg("given", (batch, vocab), "int32")
        ordered, tokens = arg("ordered", (batch, vocab)), arg("tokens", (batch, vocab), "int32")
        with grid(batch, -(-vocab // THREADS)) as (b, block, thread):
            place = T.bind(block * THREADS + thread)
            with T.If(place < vocab), T.Then():
                own, value = T.bind(place // TILE), T.bind(probs[b, place])
                at, bounds = registers((1,), "int64"), registers((2,), "int64")
                T.buffer_store(at, place % TILE, [0])
                with T.serial(0, tiles) as tile, T.If(tile != own), T.Then():
                    T.buffer_store(bounds, T.int64(0), [0])
                    T.buffer_store(bounds, T.min(T.int64(TILE), vocab - tile * TILE), [1])
                    with T.serial(0, TILE.bit_length()), T.If(bounds[0] < bounds[1]), T.Then():
                        middle = T.bind((bounds[0] + bounds[1]) // 2)
                        other = T.bind(probs[b, tile * TILE + middle])
                        comes_before = T.bind(T.Or(other > value, T.And(tile < own, other == value)))
                        T.buffer_store(bounds, T.Select(comes_before, middle + 1, bounds[0]), [0])
                        T.buffer_store(bounds, T.Select(comes_before, bounds[1], middle), [1])
                    T.buffer_store(at, at[0] + bounds[0], [0])
                T.buffer_store(ordered, value, [b, at[0]])
                T.buffer_store(tokens, given[b, place], [b, at[0]])

    return kernel

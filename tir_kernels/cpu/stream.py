"""Reading memory at full speed: the limit that decoding is held to."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, constant, prim_func, root_block, span
from .simd import LANES, prefetch, reduce_add, registers

CHAINS = 8  # vectors in flight, so that additions do not wait for one another
AHEAD = 1024  # elements, 4 KB, as in gemv


@lru_cache(None)
def stream() -> tirx.PrimFunc:
    """(x float32 [blocks, n] -> sums [blocks]); n is a multiple of 128. Every byte of x is read once."""
    step = CHAINS * LANES

    @prim_func
    def kernel():
        blocks, extent = T.int64(), T.int64()
        x = arg("x", (blocks, extent))
        sums = arg("sums", (blocks,))
        lanes = span(0, LANES)
        with root_block(), T.parallel(0, blocks) as block:
            acc = registers((CHAINS, LANES))
            for j in range(CHAINS):
                T.buffer_store(acc, constant(0.0, LANES), [j, lanes])
            with T.serial(0, extent // step) as i:
                for j in range(CHAINS):
                    prefetch(T.address_of(x[block, i * step + j * LANES + AHEAD]))
                    at = T.ramp(i * step + j * LANES, 1, LANES)
                    T.buffer_store(acc, acc[j, lanes] + x[block, at], [j, lanes])
            total = acc[0, lanes]
            for j in range(1, CHAINS):
                total = total + acc[j, lanes]
            T.buffer_store(sums, reduce_add(T.bind(total), LANES), [block])

    return kernel

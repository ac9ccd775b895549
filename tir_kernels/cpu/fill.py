"""Writing memory at full speed, before ``stream`` reads it."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, constant, prim_func, root_block, span
from .simd import LANES


@lru_cache(None)
def fill() -> tirx.PrimFunc:
    """(x float32 [blocks, n]), n is a multiple of 16: x becomes ones. Every thread touches first what it reads in
    ``stream``."""

    @prim_func
    def kernel():
        blocks, extent = T.int64(), T.int64()
        x = arg("x", (blocks, extent))
        with root_block(), T.parallel(0, blocks) as block, T.serial(0, extent // LANES) as i:
            T.buffer_store(x, constant(1.0, LANES), [block, span(i * LANES, LANES)])

    return kernel

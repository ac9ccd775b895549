"""Probabilities of logits at a temperature, as mlc_llm's engine asks for them."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, prim_func, root_block, size
from ..sampling import COLD
from .simd import exp, registers


@lru_cache(None)
def softmax(vocab: int) -> tirx.PrimFunc:
    """(logits [B, 1, V], temperatures [B] -> probabilities [B, 1, V]), float32. At a temperature of at most ``COLD`` the
    largest logits share all of it."""

    @prim_func
    def kernel():
        batch = size("batch")
        logits, temperatures = arg("logits", (batch, 1, vocab)), arg("temperatures", (batch,))
        out = arg("out", (batch, 1, vocab))
        with root_block(), T.parallel(0, batch) as b:
            found = registers((2,))
            T.buffer_store(found, logits[b, 0, 0], [0])
            with T.serial(0, vocab) as v:
                T.buffer_store(found, T.max(found[0], logits[b, 0, v]), [0])
            cold = temperatures[b] <= T.float32(COLD)
            scale = T.bind(T.float32(1.0) / T.Select(cold, T.float32(1.0), temperatures[b]))
            T.buffer_store(found, T.float32(0.0), [1])
            with T.serial(0, vocab) as v:
                below = T.bind(logits[b, 0, v] - found[0])
                share = T.bind(T.Select(cold, T.cast(below == T.float32(0.0), "float32"), exp(below * scale, 1)))
                T.buffer_store(out, share, [b, 0, v])
                T.buffer_store(found, found[1] + share, [1])
            with T.serial(0, vocab) as v:
                T.buffer_store(out, out[b, 0, v] / found[1], [b, 0, v])

    return kernel

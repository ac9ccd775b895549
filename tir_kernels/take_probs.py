"""The probabilities of tokens that were drawn, and of the likeliest, as mlc_llm's engine asks for them; on the device whose
loop over elements ``device`` holds."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .builder import arg, prim_func, size


@lru_cache(None)
def take_probs(vocab: int, device: ModuleType) -> tirx.PrimFunc:
    """(probabilities float32 [B, V], tokens by probability int32 [B, V], rows int32 [n], drawn tokens int32 [n], places int32
    [m] in the flat [B, V] -> float32 [n] of those drawn, float32 [m] and tokens int32 [m] at the places). There are fewer than
    2^31 probabilities."""

    @prim_func
    def kernel():
        batch, draws, count = size("batch"), size("draws"), size("places")
        probs, tokens = arg("probs", (batch, vocab)), arg("tokens", (batch, vocab), "int32")
        rows, drawn = arg("rows", (draws,), "int32"), arg("drawn", (draws,), "int32")
        places = arg("at", (count,), "int32")
        of_drawn, of_places, at_places = (
            arg("of_drawn", (draws,)),
            arg("of_places", (count,)),
            arg("at_places", (count,), "int32"),
        )

        def take(i):
            with T.If(i < draws):
                with T.Then():
                    row, token = T.cast(rows[i], "int64"), T.cast(drawn[i], "int64")
                    T.buffer_store(of_drawn, probs[row, token], [i])
                with T.Else():
                    place = T.bind(T.cast(places[i - draws], "int64"))
                    token = T.bind(tokens[place // vocab, place % vocab])
                    T.buffer_store(at_places, token, [i - draws])
                    T.buffer_store(of_places, probs[place // vocab, T.cast(token, "int64")], [i - draws])

        device.each(draws + count, take)

    return kernel

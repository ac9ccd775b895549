"""What mlc_llm's engine changes logits [B, V] with, in place, before it chooses tokens; on the device whose loop over elements
``device`` holds. No two entries are of the same row and token.
"""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .builder import arg, prim_func, size

LEAST = -3.4028234663852886e38  # float32's


@lru_cache(None)
def logit_bias(vocab: int, device: ModuleType) -> tirx.PrimFunc:
    """(logits float32 [B, V], rows int32 [n], tokens int32 [n], bias float32 [n]): adds the bias of each entry."""

    @prim_func
    def kernel():
        batch, entries = size("batch"), size("entries")
        logits = arg("logits", (batch, vocab))
        rows, tokens = (arg(name, (entries,), "int32") for name in ("rows", "tokens"))
        bias = arg("bias", (entries,))

        def add(i):
            row, token = _int64(rows[i]), _int64(tokens[i])
            T.buffer_store(logits, logits[row, token] + bias[i], [row, token])

        device.each(entries, add)

    return kernel


@lru_cache(None)
def penalties(vocab: int, device: ModuleType) -> tirx.PrimFunc:
    """(logits float32 [B, V], rows int32 [s], of_entry int32 [n], tokens int32 [n], counts int32 [n], penalties float32
    [s, 3]): entry i is of the sequence ``of_entry[i]``, whose row and whose penalties for presence, frequency and repetition
    are given; a logit loses the first and ``counts`` times the second, and is divided by the third, or where it is negative
    multiplied."""

    @prim_func
    def kernel():
        batch, sequences, entries = size("batch"), size("sequences"), size("entries")
        logits = arg("logits", (batch, vocab))
        rows = arg("rows", (sequences,), "int32")
        of_entry, tokens, counts = (arg(name, (entries,), "int32") for name in ("of_entry", "tokens", "counts"))
        given = arg("penalties", (sequences, 3))

        def apply(i):
            sequence, token = _int64(of_entry[i]), _int64(tokens[i])
            row = _int64(rows[sequence])
            lost = given[sequence, 0] + T.cast(counts[i], "float32") * given[sequence, 1]
            logit = T.bind(logits[row, token] - lost)
            repetition = T.bind(given[sequence, 2])
            T.buffer_store(
                logits, T.Select(logit < T.float32(0.0), logit * repetition, logit / repetition), [row, token]
            )

        device.each(entries, apply)

    return kernel


@lru_cache(None)
def bitmask(vocab: int, device: ModuleType) -> tirx.PrimFunc:
    """(logits float32 [B, V], rows int32 [s], bits int32 [B, ceil(V / 32)]): in these rows a token whose bit is not set, lowest
    first, gets float32's least number."""

    @prim_func
    def kernel():
        batch, sequences = size("batch"), size("sequences")
        logits = arg("logits", (batch, vocab))
        rows = arg("rows", (sequences,), "int32")
        bits = arg("bits", (batch, -(-vocab // 32)), "int32")

        def apply(i):
            row, token = _int64(rows[i // vocab]), T.bind(i % vocab)
            word = T.shift_right(bits[row, token // 32], T.cast(token % 32, "int32"))
            allowed = T.bitwise_and(word, T.int32(1)) == T.int32(1)
            T.buffer_store(logits, T.Select(allowed, logits[row, token], T.float32(LEAST)), [row, token])

        device.each(sequences * vocab, apply)

    return kernel


def _int64(value):
    return T.bind(T.cast(value, "int64"))

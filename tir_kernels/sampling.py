"""What the kernels that choose tokens take, on every kind of device; docs/generation.md has the rules."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .builder import arg

HEAVIEST = float(2**36)  # the weight of the likeliest token; weights are integers
HEAVIEST_BITS, ONE_BITS = (int(np.float32(value).view(np.int32)) for value in (HEAVIEST, 1))
MAX_VOCAB = 10**5  # their sums stay below 2^53, which float64 holds, and so do those of parts of them in int32
LARGEST_EXPONENT = 64.0  # of e^-x: the weight is 0 from 26 on
INFINITY = 0x7F800000  # the bits of float32; those of a NaN without its sign are more
NOT_FINITE = -1
COLD = 1e-5  # a temperature that is 0 to mlc_llm


class Request(NamedTuple):
    """One row of ``requests``, as expressions inside a kernel: ``row`` of the logits, the float32 1 / temperature (0 takes
    the likeliest token), ``top_k`` (0 keeps all), uint32 ``top_p`` and the drawn number in parts of 2^32 (``top_p`` 0
    keeps all), the float32 repetition penalty, and which rows of ``penalties`` are its own, ``first`` to ``end``."""

    row: tirx.Expr
    inverse_temperature: tirx.Expr
    top_k: tirx.Expr
    top_p: tirx.Expr
    drawn: tirx.Expr
    repetition_penalty: tirx.Expr
    first: tirx.Expr
    end: tirx.Expr

    @classmethod
    def of(cls, requests, b) -> Request:
        types = ["int32", "float32", "int32", "uint32", "uint32", "float32", "int32", "int32"]
        fields = (
            requests[b, i] if dtype == "int32" else T.reinterpret(requests[b, i], dtype=dtype)
            for i, dtype in enumerate(types)
        )
        return cls(*(T.bind(field) for field in fields))


def sampling_args(vocab: int, size) -> tuple:
    """Declare, and return after B: logits float32 [1, rows, V], requests int32 [B, 8] (``Request``), penalties int32 [N, 2]
    (a token that was chosen, and the bits of the float32 number that its logit loses), padding int32 [M] (ids never to be
    chosen; others than 0 to V - 1 name none) and tokens int32 [B]: the chosen ones, ``NOT_FINITE`` where the logits are
    not. ``size`` makes an extent."""
    assert vocab <= MAX_VOCAB, vocab
    batch = size("batch")
    return (
        batch,
        arg("logits", (1, size("rows"), vocab)),
        arg("requests", (batch, len(Request._fields)), "int32"),
        arg("penalties", (size("entries"), 2), "int32"),
        arg("padding", (size("ids"),), "int32"),
        arg("tokens", (batch,), "int32"),
    )


def penalized(score, repetition_penalty):
    """A logit of a token that was chosen, before what it loses is subtracted."""
    return T.Select(score > T.float32(0), score / repetition_penalty, score * repetition_penalty)

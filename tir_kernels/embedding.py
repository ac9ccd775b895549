"""Rows of the embedding table, expanded to float32. The table keeps its stored form: a row is read once a token."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .builder import arg, prim_func, size
from .packed import Packed, PackedFloat
from .rows import row_args
from .threads import THREADS, grid


@lru_cache(None)
def embedding(vocab_size: int, channels: int, form: Packed) -> tirx.PrimFunc:
    """(tokens, table.. -> out float32 [1, T, C]); CPU form.

    tokens int32 [T]; table [V, C] in ``form.dtype``, or q_weight uint32 [V, words] and q_scale [V, groups]. A token
    outside the vocabulary reads row 0 or V - 1: the engine refuses it before."""

    @prim_func
    def kernel():
        rows = T.int64()
        tokens = arg("tokens", (rows,), "int32")
        if isinstance(form, PackedFloat):
            table = arg("weight", (vocab_size, channels), form.dtype)
        else:
            groups = form.groups(channels)
            q_weight = arg("q_weight", (vocab_size, groups * form.words), "uint32")
            q_scale = arg("q_scale", (vocab_size, groups), form.scale_dtype)
        out = arg("out", (1, rows, channels))
        with T.sblock("root"):
            T.reads()
            T.writes()
            with T.parallel(0, rows) as t:
                token = T.bind(T.max(T.min(T.cast(tokens[t], "int64"), T.int64(vocab_size - 1)), T.int64(0)))
                with T.serial(0, channels) as c:
                    if isinstance(form, PackedFloat):
                        value = T.cast(table[token, c], "float32")
                    else:
                        word = q_weight[token, c // form.fields]
                        shift = T.cast(c % form.fields * form.bits, "uint32")
                        field = T.bitwise_and(T.shift_right(word, shift), T.uint32(2**form.bits - 1))
                        scale = T.cast(q_scale[token, c // form.group], "float32")
                        value = (T.cast(T.cast(field, "int32"), "float32") - T.float32(form.max_int)) * scale
                    T.buffer_store(out, value, [0, t, c])

    return kernel


@lru_cache(None)
def embedding_gpu(vocab_size: int, channels: int, form: Packed) -> tirx.PrimFunc:
    """(tokens, table.. -> out); shapes as in ``embedding``, a thread for every element."""

    @prim_func
    def kernel():
        rows = size("rows")
        tokens = arg("tokens", (rows,), "int32")
        table = row_args(form, "table", vocab_size, channels)
        out = arg("out", (1, rows, channels))
        with grid(rows, -(-channels // THREADS)) as (t, block, thread):
            c = T.bind(block * THREADS + thread)
            token = T.bind(T.max(T.min(tokens[t], T.int32(vocab_size - 1)), T.int32(0)))
            with T.If(c < channels), T.Then():
                if isinstance(form, PackedFloat):
                    value = T.cast(table[0][token, c], "float32")
                else:
                    shift = T.cast(c % form.fields * form.bits, "uint32")
                    field = T.bitwise_and(
                        T.shift_right(table[0][token, c // form.fields], shift), T.uint32(2**form.bits - 1)
                    )
                    scale = T.cast(table[1][token, c // form.group], "float32")
                    value = (T.cast(T.cast(field, "int32"), "float32") - T.float32(form.max_int)) * scale
                T.buffer_store(out, value, [0, t, c])

    return kernel

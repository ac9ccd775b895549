"""Activations as 16-bit integers with a scale per group, for the integer dot products of ``gemv``."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .builder import arg, prim_func, registers
from .packed import PackedGroup
from .simd import LANES, intrinsic, splat, widen


@lru_cache(None)
def quantize_activation(columns: int, form: PackedGroup) -> tirx.PrimFunc:
    """(x -> pairs, scales, offsets); CPU form. Relative error of a group 2 ** -16.

    x float32 [n, T, K]; scales float32 [n, T, G], max|x| / 32767 of each group; offsets int32 [n, T, G], -max_int * sum(q),
    which folds the weights' offset into an accumulator's start; pairs int32 [n, T, Kp / 2]: elements k and k + fields / 2
    of each word's span as int16 halves, in the order in which ``PackedGroup.pair`` yields the weights.
    """
    fields, group, half = form.fields, form.group, form.fields // 2
    groups = form.groups(columns)

    @prim_func
    def kernel():
        inputs, rows = T.int64(), T.int64()
        x = arg("x", (inputs, rows, columns))
        pairs = arg("pairs", (inputs, rows, groups * group // 2), "int32")
        scales = arg("scales", (inputs, rows, groups))
        offsets = arg("offsets", (inputs, rows, groups), "int32")

        def quantize_group(n, t, g, length: int):
            """Group g of one row, of which ``length`` inputs exist."""
            start = g * group
            local = registers((group,), "int32")
            top = registers((1,))
            T.buffer_store(top, T.float32(0.0), [0])
            with T.serial(0, length) as i:
                T.buffer_store(top, T.max(top[0], T.fabs(x[n, t, start + i])), [0])
            inverse = T.bind(T.float32(32767.0) / T.max(top[0], T.float32(1e-30)))
            total = registers((1,), "int32")
            T.buffer_store(total, T.int32(0), [0])
            with T.serial(0, length) as i:
                T.buffer_store(local, T.cast(T.nearbyint(x[n, t, start + i] * inverse), "int32"), [i])
                T.buffer_store(total, total[0] + local[i], [0])
            for i in range(length, group):
                T.buffer_store(local, T.int32(0), [i])
            for i in range(group // 2):
                low = i // half * fields + i % half
                pair = T.bitwise_or(T.bitwise_and(local[low], 0xFFFF), T.shift_left(local[low + half], 16))
                T.buffer_store(pairs, pair, [n, t, g * (group // 2) + i])
            T.buffer_store(scales, top[0] * T.float32(1 / 32767), [n, t, g])
            T.buffer_store(offsets, total[0] * -form.max_int, [n, t, g])

        def quantize_group_on_vectors(n, t, g):
            lanes = [T.ramp(g * group + i, 1, LANES) for i in range(0, group, LANES)]
            values = [T.bind(x[n, t, at]) for at in lanes]
            magnitudes = [T.fabs(value) for value in values]
            while len(magnitudes) > 1:
                magnitudes = [T.max(*magnitudes[i : i + 2]) for i in range(0, len(magnitudes), 2)]
            top = T.bind(intrinsic("llvm.vector.reduce.fmax", "float32", magnitudes[0]))
            inverse = T.bind(splat(T.float32(32767.0) / T.max(top, T.float32(1e-30)), LANES))
            total = None
            order = [i // half * fields + i % half + j * half for i in range(LANES // 2) for j in range(2)]
            for i, value in enumerate(values):
                q = T.bind(widen(T.nearbyint(value * inverse), "int32", LANES))
                total = q if total is None else total + q
                paired = T.Shuffle([widen(q, "int16", LANES)], order)
                at = T.ramp(g * (group // 2) + i * LANES // 2, 1, LANES // 2)
                T.buffer_store(pairs, T.reinterpret(paired, dtype="int32x8"), [n, t, at])
            T.buffer_store(scales, top * T.float32(1 / 32767), [n, t, g])
            summed = intrinsic("llvm.vector.reduce.add", "int32", total)
            T.buffer_store(offsets, summed * -form.max_int, [n, t, g])

        with T.sblock("root"):
            T.reads()
            T.writes()
            on_vectors = group % LANES == 0 and LANES % fields == 0
            with T.serial(0, inputs) as n, T.serial(0, rows) as t:
                with T.serial(0, columns // group) as g:
                    quantize_group_on_vectors(n, t, g) if on_vectors else quantize_group(n, t, g, group)
                if columns % group:
                    quantize_group(n, t, groups - 1, columns % group)

    return kernel

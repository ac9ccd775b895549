"""Matrix products of single tokens whose inputs are mostly zero: the weights of a zero are not read."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, cast, prim_func, root_block, span, splat
from ..product import Matrix, operands
from .blocks import finish_block
from .integer_dot import INTEGER_DOTS
from .lists import AHEAD
from .outliers import OutlierLists, add_outliers
from .packed import LINE, PackedFloat, Tiled
from .quantize_activation import DIGITS, join_digits
from .simd import LANES, prefetch, registers

TOGETHER = {"vnni": 4, "avx512": 4}
"""Vectors of 16 rows, with three places each, whose integer sums stay in registers; 2 where those are few or narrow."""


def interleave(a, b, size: int, high: int):
    """Elements of ``size`` bytes from the lower or upper 8 of each 16 bytes of two lines, in turn."""
    starts = [lane * 16 + high * 8 + i * size for lane in range(4) for i in range(8 // size)]
    order = [line * LINE + start + byte for start in starts for line in range(2) for byte in range(size)]
    return T.bind(T.Shuffle([a, b], order))


@lru_cache(None)
def sparse_gemv(
    outputs: int,
    columns: int,
    form: Tiled,
    integer_dot: str | None = None,
    gated: bool = False,
    residual: bool = False,
) -> tirx.PrimFunc:
    """(lists.., weights.. [, gate][, residual] -> out).

    The lists are what ``list_inputs`` returns for groups of ``form.group`` inputs, or for one group of all where ``form``
    is a float's; with ``integer_dot`` (a key of ``INTEGER_DOTS``, group forms only) what ``quantize_inputs`` returns.
    Weights as ``packed`` says. out float32 [1, T, N] = W x, times ``gate`` and plus ``residual`` of its shape; with
    ``integer_dot`` the bits are those of ``gemv``. Sums of inputs that are listed and zero are the same as without them.
    """
    matrices = (Matrix(outputs),)
    groups = 1 if isinstance(form, PackedFloat) else form.groups(columns)
    vectors, blocks = form.tile // LANES, -(-outputs // LANES)
    tiles = -(-blocks // vectors)

    @prim_func
    def kernel():
        rows = T.int64()
        if integer_dot:
            padded = form.padded(columns)
            digits = arg("digits", (rows, DIGITS, padded // 4), "int32")
            inputs = arg("inputs", (rows, padded + AHEAD), "int32")
            bounds = arg("bounds", (rows, groups + 1), "int32")
            scales = arg("scales", (rows, groups))
            offsets = arg("offsets", (rows, DIGITS, groups), "int32")
            outliers = OutlierLists(columns, form).argument(rows)
        else:
            values = arg("values", (rows, columns + AHEAD))
            inputs = arg("inputs", (rows, columns + AHEAD), "int32")
            bounds = arg("bounds", (rows, groups + 1), "int32")
        rest = operands(matrices, rows, columns, form, gated, residual)
        weight, *q_scale = rest.weights[0]
        lanes = span(0, LANES)

        def line(tile, t, entry):
            """Ask for the line of a list's entry."""
            prefetch(T.address_of(weight[tile, inputs[t, entry], 0]), level=2)

        def zeros(count: int, dtype: str = "float32"):
            array = registers((count, LANES), dtype)
            for v in range(count):
                T.buffer_store(array, splat(tirx.const(0, dtype), LANES), [v, lanes])
            return array

        def float_product(tile, t):
            sums = zeros(vectors)
            with T.serial(bounds[t, 0], bounds[t, 1]) as entry:
                line(tile, t, entry + AHEAD)
                x, k = T.bind(splat(values[t, entry], LANES)), T.bind(inputs[t, entry])
                for v in range(vectors):
                    w = form.value(weight, tile * vectors + v, k)
                    T.buffer_store(sums, sums[v, lanes] + w * x, [v, lanes])
            return [sums[v, lanes] for v in range(vectors)]

        def group_product(tile, t):
            total = zeros(vectors)
            with T.serial(0, groups) as g, T.If(bounds[t, g] < bounds[t, g + 1]), T.Then():
                for first in range(0, vectors, 4):
                    sums = zeros(4)
                    with T.serial(bounds[t, g], bounds[t, g + 1]) as entry:
                        if first == 0:
                            line(tile, t, entry + AHEAD)
                        x, k = T.bind(splat(values[t, entry], LANES)), T.bind(inputs[t, entry])
                        for v in range(4):
                            w = form.value(weight, tile * vectors + first + v, k)
                            T.buffer_store(sums, sums[v, lanes] + w * x, [v, lanes])
                    for v in range(4):
                        scale = form.scale(q_scale[0], tile * vectors + first + v, g)
                        T.buffer_store(total, total[first + v, lanes] + sums[v, lanes] * scale, [first + v, lanes])
            return [total[v, lanes] for v in range(vectors)]

        def add_four(tile, t, four, sums, chosen: list[int]):
            """Add the products of one four of inputs to the sums [place][vector, 16] of the vectors ``chosen``."""
            lines = [
                T.bind(T.reinterpret(weight[tile, inputs[t, four * 4 + i], lanes], dtype="uint8x64")) for i in range(4)
            ]
            if chosen[0] == 0:
                for i in range(4):
                    line(tile, t, four * 4 + i + AHEAD)
            digit = [T.bind(splat(digits[t, place, four], LANES)) for place in range(DIGITS)]
            for high in sorted({v % 4 // 2 for v in chosen}):
                pairs = interleave(*lines[:2], 1, high), interleave(*lines[2:], 1, high)
                for low in sorted({v % 2 for v in chosen}):
                    quad = T.bind(T.reinterpret(interleave(*pairs, 2, low), dtype="uint32x16"))
                    for v in (v for v in chosen if v % 4 == 2 * high + low):
                        w = T.bind(T.reinterpret(form.nibbles(quad, v // 4, LANES), dtype="int32x16"))
                        for place in range(DIGITS):
                            at = [chosen.index(v), lanes]
                            T.buffer_store(sums[place], dot(sums[place][at], w, digit[place]), at)

        def integer_product(tile, t):
            """Vector v of the sums has rows 16 a + 4 b + c of each 64 rows, b = v % 4, at 4 a + c."""
            total = zeros(vectors)
            with T.serial(0, groups) as g, T.If(bounds[t, g] < bounds[t, g + 1]), T.Then():
                for chosen in parts:
                    sums = [registers((len(chosen), LANES), "int32") for _ in range(DIGITS)]
                    for place in range(DIGITS):
                        start = T.bind(splat(offsets[t, place, g], LANES))
                        for i in range(len(chosen)):
                            T.buffer_store(sums[place], start, [i, lanes])
                    with T.serial(bounds[t, g], bounds[t, g + 1]) as four:
                        add_four(tile, t, four, sums, chosen)
                    for i, v in enumerate(chosen):
                        product = join_digits([sums[place][i, lanes] for place in range(DIGITS)])
                        scale = cast(q_scale[0][tile, g, T.ramp(v * LANES, 1, LANES)], "float32", LANES)
                        scale = scale * splat(scales[t, g], LANES)
                        T.buffer_store(total, total[v, lanes] + product * scale, [v, lanes])
            whole = zeros(vectors)
            for v in range(vectors):
                T.buffer_store(whole, natural(total, v), [v, lanes])
                add_outliers(
                    whole, (v, lanes), rest.weights[0], tile * vectors + v, outliers, (t,), OutlierLists(columns, form)
                )
            return [whole[v, lanes] for v in range(vectors)]

        def natural(total, block: int):
            four = [total[block // 4 * 4 + b, lanes] for b in range(4)]
            return T.Shuffle(four, [b * LANES + block % 4 * 4 + c for b in range(4) for c in range(4)])

        if integer_dot:
            product, dot = integer_product, INTEGER_DOTS[integer_dot]
            # Vectors that are made of the same interleaved bytes stay together.
            nibbles, together = vectors // 4, TOGETHER.get(integer_dot, 2)
            order = [v + 4 * nibble for v in range(4) for nibble in range(nibbles)]
            parts = [order[i : i + together] for i in range(0, vectors, together)]
        else:
            product = float_product if isinstance(form, PackedFloat) else group_product

        with root_block(), T.parallel(0, tiles) as tile, T.serial(0, rows) as t:
            for v, y in enumerate(product(tile, t)):
                block = tile * vectors + v
                if tiles * vectors == blocks:
                    finish_block(rest, matrices, 0, y, t, block)
                else:
                    with T.If(block < blocks), T.Then():
                        finish_block(rest, matrices, 0, y, t, block)

    return kernel

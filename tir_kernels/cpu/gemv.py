"""Matrix products of single tokens, weight bytes bound: several matrices in one parallel region."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, constant, prim_func, root_block, span, splat
from ..product import Matrix, check_planes, operands
from .blocks import each_block, each_part, finish_block
from .integer_dot import INTEGER_DOTS
from .outliers import OutlierLists, add_outliers
from .packed import Packed, PackedFloat
from .quantize_activation import DIGITS, join_digits
from .simd import LANES, prefetch, registers

PREFETCH = 64  # words ahead, 4 KB: past what the hardware prefetchers of the two streams reach


@lru_cache(None)
def gemv(
    matrices: tuple[Matrix, ...],
    columns: int,
    form: Packed,
    integer_dot: str | None = None,
    planes: int = 1,
    gated: bool = False,
    residual: bool = False,
    parts: int | None = None,
    lists: int = 1,
) -> tirx.PrimFunc:
    """(x.., weights.. [, gate][, residual] -> out..).

    x is float32 [planes, T, K], of which each matrix reads one plane; with ``integer_dot`` (a key of ``INTEGER_DOTS``, group
    forms only) it is what ``quantize_activation`` returns in ``lists`` parts. Weights of each matrix as ``packed`` says.
    out_i float32 [1, T, N_i] = activation(W_i x[plane_i]); ``gate`` [1, T, N_0] multiplies it, ``residual`` [1, T, N_0] is
    added.
    T is expected to be small: the weights are read from memory once and from the cache for every further row. With
    ``parts`` every matrix has a parallel loop over as many equal parts of its rows; else one loop runs over all blocks.
    """
    check_planes(matrices, planes)

    @prim_func(own=("writes", "loops") if parts else ())
    def kernel():
        rows = T.int64()
        if integer_dot:
            groups = form.groups(columns)
            digits = arg("digits", (planes, rows, DIGITS, groups * form.words * len(form.quads)), "int32")
            scales = arg("scales", (planes, rows, groups))
            offsets = arg("offsets", (planes, rows, DIGITS, groups), "int32")
            outliers = OutlierLists(columns, form, lists).argument(planes, rows)
        else:
            x = arg("x", (planes, rows, columns))
        rest = operands(matrices, rows, columns, form, gated, residual)
        lanes = span(0, LANES)

        def float_product(i, block, t):
            """Four accumulators hide the latency of the additions."""
            chains = 4 if columns % 4 == 0 else 1
            (weight,), plane = rest.weights[i], matrices[i].plane
            acc = registers((chains, LANES))
            for j in range(chains):
                T.buffer_store(acc, constant(0.0, LANES), [j, lanes])
            with T.serial(0, columns // chains) as k:
                for j in range(chains):
                    w = form.value(weight, block, k * chains + j)
                    T.buffer_store(acc, acc[j, lanes] + w * splat(x[plane, t, k * chains + j], LANES), [j, lanes])
            if chains == 1:
                return acc[0, lanes]
            return (acc[0, lanes] + acc[1, lanes]) + (acc[2, lanes] + acc[3, lanes])

        def group_product(i, block, t):
            (q_weight, q_scale), plane = rest.weights[i], matrices[i].plane
            acc = registers((2, LANES))
            T.buffer_store(acc, constant(0.0, LANES), [0, lanes])

            def add_group(g, length: int):
                T.buffer_store(acc, constant(0.0, LANES), [1, lanes])
                for k in range(length):
                    word = form.word(q_weight, block, g * form.words + k // form.fields)
                    product = form.field(word, k % form.fields) * splat(x[plane, t, g * form.group + k], LANES)
                    T.buffer_store(acc, acc[1, lanes] + product, [1, lanes])
                T.buffer_store(acc, acc[0, lanes] + acc[1, lanes] * form.scale(q_scale, block, g), [0, lanes])

            with T.serial(0, columns // form.group) as g:
                add_group(g, form.group)
            if columns % form.group:
                add_group(columns // form.group, columns % form.group)
            return acc[0, lanes]

        def integer_product(i, block, t):
            (q_weight, q_scale), plane = rest.weights[i], matrices[i].plane
            dot, quads = INTEGER_DOTS[integer_dot], len(form.quads)
            acc = registers((1, LANES))
            T.buffer_store(acc, constant(0.0, LANES), [0, lanes])
            with T.serial(0, form.groups(columns)) as g:
                sums = [T.bind(splat(offsets[plane, t, place, g], LANES)) for place in range(DIGITS)]
                for word in range(form.words):
                    at = g * form.words + word
                    if (ahead := form.address(q_weight, block, at + PREFETCH)) is not None:
                        prefetch(ahead)
                    words = T.bind(form.word(q_weight, block, at))
                    for j in range(quads):
                        quad = T.bind(form.quad(words, j))
                        for place in range(DIGITS):
                            digit = splat(digits[plane, t, place, at * quads + j], LANES)
                            sums[place] = T.bind(dot(sums[place], quad, digit))
                scale = form.scale(q_scale, block, g) * splat(scales[plane, t, g], LANES)
                T.buffer_store(acc, acc[0, lanes] + join_digits(sums) * scale, [0, lanes])
            kept = OutlierLists(columns, form, lists)
            add_outliers(acc, (0, lanes), rest.weights[i], block, outliers, (plane, t), kept)
            return acc[0, lanes]

        if integer_dot:
            product = integer_product
        else:
            product = float_product if isinstance(form, PackedFloat) else group_product

        def block_of_rows(i, block):
            with T.serial(0, rows) as t:
                finish_block(rest, matrices, i, product(i, block, t), t, block)

        with root_block():
            if parts:
                each_part(matrices, parts, block_of_rows)
            else:
                each_block(matrices, LANES, block_of_rows)

    return kernel

"""Matrix products of many tokens with activations of one to three bytes: weights are spread to panels of signed bytes,
products are integer dots, one for each place of the activations.

The integers are exact; what is lost is the activations' rounding, half of the last place of the largest of each group.
"""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, cast, constant, prim_func, root_block, span, splat
from ..product import Matrix, check_planes, operands
from .blocks import each_block, finish_block
from .integer_dot import INTEGER_DOTS
from .outliers import OutlierLists, add_outliers
from .packed import PackedGroup
from .simd import LANES, registers

TILES = {"vnni": (6, 2)}
"""Register blocks, token rows by vectors of 16 output rows, for the integer dots that take all bytes and outrun float32: 12
integer and 12 float32 accumulators fill 24 of 32 registers."""


@lru_cache(None)
def gemm_bytes(
    matrices: tuple[Matrix, ...],
    columns: int,
    form: PackedGroup,
    places: int,
    integer_dot: str,
    planes: int = 1,
    gated: bool = False,
    residual: bool = False,
) -> tirx.PrimFunc:
    """(digits, scales, outliers, weights.. [, gate][, residual] -> out..).

    The first three are what ``quantize_bytes`` returns, the others as in ``gemv``; ``integer_dot`` is a key of ``TILES``.
    A panel holds all inputs of a tile's output rows, a byte each, and is read from the second-level cache for every tile
    of tokens. Sums begin with what the digits' offset adds, at the highest place, and are shifted on from place to place. A
    last partial tile repeats the last token, which costs time and changes nothing.
    """
    check_planes(matrices, planes)
    (tile_rows, tile_vectors), dot = TILES[integer_dot], INTEGER_DOTS[integer_dot]
    groups, quads = form.groups(columns), form.words * len(form.quads)
    lists = OutlierLists(columns, form)
    cells = [(m, v) for m in range(tile_rows) for v in range(tile_vectors)]

    @prim_func
    def kernel():
        rows = T.int64()
        digits = arg("digits", (planes, rows, places, groups * quads), "int32")
        scales = arg("scales", (planes, rows, groups))
        outliers = lists.argument(planes, rows)
        rest = operands(matrices, rows, columns, form, gated, residual)
        lanes = span(0, LANES)

        def expand(i, block, v, panel, panel_scale, panel_start):
            """The weights of one row block as signed bytes, their scales as float32 and what their sums begin with, into
            column ``v`` of the panel."""
            q_weight, q_scale = rest.weights[i]
            with T.serial(0, groups) as g:
                T.buffer_store(panel_scale, form.scale(q_scale, block, g), [g, v, lanes])
                start = splat(T.int32(0), LANES)
                for j, quad in enumerate(form.byte_quads(q_weight, block, g)):
                    offset = sum(form.max_int << 8 * byte for byte in range(len(form.quads[j % len(form.quads)])))
                    octets, offsets = (
                        T.reinterpret(word, dtype=f"uint8x{4 * LANES}")
                        for word in (quad, splat(T.uint32(offset), LANES))
                    )
                    signed = T.bind(T.reinterpret(octets - offsets, dtype=f"int32x{LANES}"))
                    T.buffer_store(panel, signed, [g * quads + j, v, lanes])
                    start = T.bind(dot(start, splat(T.int32(0x80808080 - 2**32), LANES), signed))
                T.buffer_store(panel_start, splat(T.int32(0), LANES) - start, [g, v, lanes])

        def multiply(i, tokens, panel, panel_scale, panel_start, products):
            """One tile of the output, before what follows: ``products`` [tile_rows, tile_vectors, 16]."""
            acc, sums = (
                [registers((tile_vectors, LANES), dtype) for _ in range(tile_rows)] for dtype in ("float32", "int32")
            )
            plane = matrices[i].plane
            for m, v in cells:
                T.buffer_store(acc[m], constant(0.0, LANES), [v, lanes])
            with T.serial(0, groups) as g:
                for m, v in cells:
                    T.buffer_store(sums[m], panel_start[g, v, lanes], [v, lanes])
                for place in reversed(range(places)):
                    if place < places - 1:
                        for m, v in cells:
                            T.buffer_store(
                                sums[m], T.shift_left(sums[m][v, lanes], splat(T.int32(8), LANES)), [v, lanes]
                            )
                    with T.serial(0, quads) as quad:
                        at = T.bind(g * quads + quad)
                        for m, v in cells:
                            digit = splat(digits[plane, tokens[m], place, at], LANES)
                            T.buffer_store(sums[m], dot(sums[m][v, lanes], digit, panel[at, v, lanes]), [v, lanes])
                for m, v in cells:
                    scale = panel_scale[g, v, lanes] * splat(scales[plane, tokens[m], g], LANES)
                    value = acc[m][v, lanes] + cast(sums[m][v, lanes], "float32", LANES) * scale
                    T.buffer_store(acc[m], value, [v, lanes])
            for m, v in cells:
                T.buffer_store(products, acc[m][v, lanes], [m, v, lanes])

        def finish(i, token, block, product):
            """All that follows a product, 16 lanes of it: the share of the outliers first."""
            total = registers((LANES,))
            T.buffer_store(total, product, [lanes])
            add_outliers(total, (lanes,), rest.weights[i], block, outliers, (matrices[i].plane, token), lists)
            finish_block(rest, matrices, i, total[lanes], token, block)

        def panel_of_rows(i, index):
            last = -(-matrices[i].rows // LANES) - 1
            panel = T.alloc_buffer((groups * quads, tile_vectors, LANES), "int32")
            panel_scale = T.alloc_buffer((groups, tile_vectors, LANES))
            panel_start = T.alloc_buffer((groups, tile_vectors, LANES), "int32")

            def block_of(v):
                return T.bind(T.min(index * tile_vectors + v, T.int64(last)))

            with T.serial(0, tile_vectors) as v:
                expand(i, block_of(v), v, panel, panel_scale, panel_start)
            with T.serial(0, (rows + tile_rows - 1) // tile_rows) as tile:
                tokens = [T.bind(T.min(tile * tile_rows + m, rows - 1)) for m in range(tile_rows)]
                products = registers((tile_rows, tile_vectors, LANES))
                multiply(i, tokens, panel, panel_scale, panel_start, products)
                with T.serial(0, tile_rows) as m, T.serial(0, tile_vectors) as v:
                    token = T.bind(T.min(tile * tile_rows + m, rows - 1))
                    finish(i, token, block_of(v), products[m, v, lanes])

        with root_block():
            each_block(matrices, tile_vectors * LANES, panel_of_rows)

    return kernel

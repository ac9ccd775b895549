"""Matrix products of many tokens with 8-bit activations: weights are spread to byte panels, products are integer dots.

The integers are exact; what is lost is the activations' rounding, half a 127th of the largest of each group.
"""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, cast, constant, prim_func, root_block, span, splat
from ..product import Matrix, check_planes, operands
from .blocks import each_block, finish_block
from .integer_dot import INTEGER_DOTS
from .packed import PackedGroup
from .simd import LANES, registers

TILES = {"vnni": (6, 2)}
"""Register blocks, token rows by vectors of 16 output rows, for the integer dots that take digits up to 127 and outrun
float32: 12 integer and 12 float32 accumulators fill 24 of 32 registers."""


@lru_cache(None)
def gemm_int8(
    matrices: tuple[Matrix, ...],
    columns: int,
    form: PackedGroup,
    integer_dot: str,
    planes: int = 1,
    gated: bool = False,
    residual: bool = False,
) -> tirx.PrimFunc:
    """(digits, scales, offsets, weights.. [, gate][, residual] -> out..).

    The first three are what ``quantize_int8`` returns, the others as in ``gemv``; ``integer_dot`` is a key of ``TILES``.
    A panel holds all inputs of a tile's output rows, a byte each, and is read from the second-level cache for every tile
    of tokens. A last partial tile repeats the last token, which costs time and changes nothing.
    """
    check_planes(matrices, planes)
    (tile_rows, tile_vectors), dot = TILES[integer_dot], INTEGER_DOTS[integer_dot]
    groups, quads = form.groups(columns), form.words * len(form.quads)
    cells = [(m, v) for m in range(tile_rows) for v in range(tile_vectors)]

    @prim_func
    def kernel():
        rows = T.int64()
        digits = arg("digits", (planes, rows, groups * quads), "int32")
        scales = arg("scales", (planes, rows, groups))
        offsets = arg("offsets", (planes, rows, groups), "int32")
        rest = operands(matrices, rows, columns, form, gated, residual)
        lanes = span(0, LANES)

        def expand(i, block, v: int, panel, panel_scale):
            """The weights of one row block as bytes and their scales as float32, into column ``v`` of the panel."""
            q_weight, q_scale = rest.weights[i]
            with T.serial(0, groups) as g:
                T.buffer_store(panel_scale, form.scale(q_scale, block, g), [g, v, lanes])
                for j, quad in enumerate(form.byte_quads(q_weight, block, g)):
                    T.buffer_store(panel, T.reinterpret(quad, dtype="int32x16"), [g * quads + j, v, lanes])

        def multiply(i, tokens, panel, panel_scale):
            """One tile of the output, before what follows the product: float32 [tile_rows][tile_vectors, 16]."""
            acc = [registers((tile_vectors, LANES)) for _ in range(tile_rows)]
            for m, v in cells:
                T.buffer_store(acc[m], constant(0.0, LANES), [v, lanes])
            with T.serial(0, groups) as g:
                starts = [T.bind(splat(offsets[matrices[i].plane, token, g], LANES)) for token in tokens]
                sums = {(m, v): starts[m] for m, v in cells}
                for quad in range(quads):
                    at = g * quads + quad
                    w = [T.bind(panel[at, v, lanes]) for v in range(tile_vectors)]
                    for m, token in enumerate(tokens):
                        digit = T.bind(splat(digits[matrices[i].plane, token, at], LANES))
                        for v in range(tile_vectors):
                            sums[m, v] = T.bind(dot(sums[m, v], w[v], digit))
                for m, v in cells:
                    scale = panel_scale[g, v, lanes] * splat(scales[matrices[i].plane, tokens[m], g], LANES)
                    value = acc[m][v, lanes] + cast(sums[m, v], "float32", LANES) * scale
                    T.buffer_store(acc[m], value, [v, lanes])
            return acc

        def panel_of_rows(i, index):
            last = -(-matrices[i].rows // LANES) - 1
            blocks = [T.bind(T.min(index * tile_vectors + v, T.int64(last))) for v in range(tile_vectors)]
            panel = T.alloc_buffer((groups * quads, tile_vectors, LANES), "int32")
            panel_scale = T.alloc_buffer((groups, tile_vectors, LANES))
            for v in range(tile_vectors):
                expand(i, blocks[v], v, panel, panel_scale)
            with T.serial(0, (rows + tile_rows - 1) // tile_rows) as tile:
                tokens = [T.bind(T.min(tile * tile_rows + m, rows - 1)) for m in range(tile_rows)]
                acc = multiply(i, tokens, panel, panel_scale)
                for m, v in cells:
                    finish_block(rest, matrices, i, acc[m][v, lanes], tokens[m], blocks[v])

        with root_block():
            each_block(matrices, tile_vectors * LANES, panel_of_rows)

    return kernel

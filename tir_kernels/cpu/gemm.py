"""Matrix products of many tokens, arithmetic bound: weights are expanded to float32 panels that stay in the cache."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, constant, prim_func, root_block, span, splat
from ..product import Matrix, check_planes, operands
from .blocks import each_block, finish_block, load_block, store_block
from .packed import Packed, PackedFloat
from .simd import LANES, registers

DEPTH = 128  # inputs in a panel, at most: 128 x 64 float32 are half of a 64 KB first-level share


@lru_cache(None)
def gemm(
    matrices: tuple[Matrix, ...],
    columns: int,
    form: Packed,
    tile: tuple[int, int] = (6, 4),
    planes: int = 1,
    gated: bool = False,
    residual: bool = False,
) -> tirx.PrimFunc:
    """(x, weights.. [, gate][, residual] -> out..), exact in float32.

    Shapes as in ``gemv``: x [planes, T, K], out_i [1, T, N_i]. ``tile`` is the register block: token rows by vectors of 16
    output rows. A last partial tile of tokens repeats the last token, which costs time and changes nothing.
    """
    check_planes(matrices, planes)
    tile_rows, tile_vectors = tile
    unit = DEPTH if isinstance(form, PackedFloat) else DEPTH // form.group * form.group
    depth = min(unit, form.padded(columns))
    chunks = -(-columns // depth)

    @prim_func
    def kernel():
        rows = T.int64()
        x = arg("x", (planes, rows, columns))
        rest = operands(matrices, rows, columns, form, gated, residual)
        lanes = span(0, LANES)

        def expand(i, block, first, vector, panel):
            """Weights of one row block, inputs from ``first`` on, into column ``vector`` of the panel."""
            at = T.ramp(vector * LANES, 1, LANES)
            if isinstance(form, PackedFloat):
                (weight,) = rest.weights[i]
                with T.serial(0, T.min(depth, columns - first)) as k:
                    T.buffer_store(panel, form.value(weight, block, first + k), [k, at])
                return
            q_weight, q_scale = rest.weights[i]
            with T.serial(0, T.min(depth, form.padded(columns) - first) // form.group) as g:
                group = first // form.group + g
                scale = T.bind(form.scale(q_scale, block, group))
                for k, value in enumerate(form.values(q_weight, block, group)):
                    T.buffer_store(panel, value * scale, [g * form.group + k, at])

        def multiply(i, blocks, chunk, panel):
            """Add one panel's share to every token of the output; the first chunk starts from zero."""
            out = rest.outs[i]
            with T.serial(0, (rows + tile_rows - 1) // tile_rows) as tile_index:
                tokens = [T.bind(T.min(tile_index * tile_rows + m, rows - 1)) for m in range(tile_rows)]
                acc = [registers((tile_vectors, LANES)) for _ in range(tile_rows)]
                cells = [(m, v) for m in range(tile_rows) for v in range(tile_vectors)]
                for m, v in cells:
                    start = load_block(out, tokens[m], blocks[v], matrices[i].rows)
                    start = T.if_then_else(chunk == 0, constant(0.0, LANES), start)
                    T.buffer_store(acc[m], start, [v, lanes])
                with T.serial(0, T.min(depth, columns - chunk * depth)) as k:
                    for m, v in cells:
                        w = panel[k, T.ramp(v * LANES, 1, LANES)]
                        token = splat(x[matrices[i].plane, tokens[m], chunk * depth + k], LANES)
                        T.buffer_store(acc[m], acc[m][v, lanes] + token * w, [v, lanes])
                for m, v in cells:
                    store_block(out, acc[m][v, lanes], tokens[m], blocks[v], matrices[i].rows)

        def finish(i, block):
            with T.serial(0, rows) as t:
                product = T.bind(load_block(rest.outs[i], t, block, matrices[i].rows))
                finish_block(rest, matrices, i, product, t, block)

        def panel_of_rows(i, index):
            last = -(-matrices[i].rows // LANES) - 1
            blocks = [T.bind(T.min(index * tile_vectors + v, T.int64(last))) for v in range(tile_vectors)]
            panel = T.alloc_buffer((depth, tile_vectors * LANES))
            with T.serial(0, chunks) as chunk:
                with T.serial(0, tile_vectors) as v:
                    block = T.bind(T.min(index * tile_vectors + v, T.int64(last)))
                    expand(i, block, chunk * depth, v, panel)
                multiply(i, blocks, chunk, panel)
            if matrices[i].activation or gated or residual:
                with T.serial(0, T.min(T.int64(tile_vectors), last + 1 - index * tile_vectors)) as v:
                    finish(i, index * tile_vectors + v)

        with root_block():
            each_block(matrices, tile_vectors * LANES, panel_of_rows)

    return kernel

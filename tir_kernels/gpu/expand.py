"""Products of thin matrices, the second halves of low-rank pairs: all of a block in one launch, with biases and activations."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..activations import ACTIVATIONS
from ..builder import arg, cast, prim_func, size
from ..expansion import Expansion
from ..product import Matrix, block_starts
from ..rows import RowFloat
from .thin import LANES, ROWS, add_products, of_lane
from .threads import THREADS, choose, exp, grid, narrow, registers, shared, totals


@lru_cache(None)
def expand(
    products: tuple[Expansion, ...],
    form: RowFloat,
    tokens: int,
    gated: bool = False,
    dtype: str = "float32",
    float16_lanes: int = 4,
) -> tirx.PrimFunc:
    """(h_0 .. h_{n-1}, weight_0[, bias_0] .. weight_{n-1}[, bias_{n-1}][, gate] -> out_0 .. out_{n-1}).

    Shapes as in ``cpu.expand``; weights [N_i, R_i] as ``rows`` says; gate and outputs in ``dtype``, the rest float32.
    ``tokens``, at most ``LANES``, share a load of the weights; ``float16_lanes`` is how many float16 a vector may hold."""
    starts = block_starts(tuple(Matrix(product.rows) for product in products), ROWS)

    @prim_func
    def kernel():
        rows = size("rows")
        hidden = [arg(f"h{i}", (1, rows, product.rank)) for i, product in enumerate(products)]
        weights, biases = [], []
        for i, product in enumerate(products):
            weights += form.args(f"w{i}", product.rows, product.rank)
            biases.append(arg(f"bias{i}", (1, 1, product.rows)) if product.biased else None)
        gate = arg("gate", (1, rows, products[0].rows), dtype) if gated else None
        outs = [arg(f"out{i}", (1, rows, product.rows), dtype) for i, product in enumerate(products)]

        with grid((rows + tokens - 1) // tokens, starts[-1]) as (tile, block, thread):
            sums, scratch = registers((tokens,)), shared((tokens, THREADS))
            group, lane = T.bind(thread // LANES), T.bind(thread % LANES)
            ts = [T.bind(T.min(tile * tokens + m, rows - 1)) for m in range(tokens)]
            for m in range(tokens):
                T.buffer_store(sums, T.float32(0.0), [m])

            def multiply(i: int) -> None:
                product = products[i]
                row = T.bind(T.min((block - starts[i]) * ROWS + group, product.rows - 1))
                loads = [lambda at, t=t: hidden[i][0, t, at] for t in ts]
                add_products(sums, product.rank, form.dtype, float16_lanes, lane, lambda at: weights[i][row, at], loads)

            choose(block, starts, multiply)
            found = totals([sums[m] for m in range(tokens)], thread, LANES, scratch)
            mine, t = of_lane(found, lane), T.bind(tile * tokens + lane)

            def finish(i: int) -> None:
                product, bias = products[i], biases[i]
                row = T.bind((block - starts[i]) * ROWS + group)
                with T.If(T.And(T.And(lane < tokens, row < product.rows), t < rows)), T.Then():
                    y = mine if bias is None else T.bind(mine + bias[0, 0, row])
                    y = ACTIVATIONS[product.activation](y, 1, exp)
                    y = y if gate is None else y * cast(gate[0, t, row], "float32", 1)
                    T.buffer_store(outs[i], narrow(y, dtype), [0, t, row])

            choose(block, starts, finish)

    return kernel

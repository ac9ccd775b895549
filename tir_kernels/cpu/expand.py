"""Products of thin matrices, the second halves of low-rank pairs: all of a block in one call, with biases and activations."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..activations import ACTIVATIONS
from ..builder import arg, prim_func, root_block
from ..expansion import Expansion
from ..product import Matrix
from .blocks import each_block, each_part, load_block, store_block
from .packed import PackedFloat
from .simd import LANES, exp
from .thin import each_token_tile


@lru_cache(None)
def expand(
    products: tuple[Expansion, ...], form: PackedFloat, tokens: int, gated: bool = False, parts: int | None = None
) -> tirx.PrimFunc:
    """(h_0 .. h_{n-1}, weight_0[, bias_0] .. weight_{n-1}[, bias_{n-1}][, gate] -> out_0 .. out_{n-1}).

    h_i float32 [1, T, R_i]; weights [N_i, R_i] as ``packed`` says; biases [N_i], gate [1, T, N_0] and out_i [1, T, N_i]
    float32. out_i = activation(W_i h_i + bias_i), times the gate where there is one. ``tokens`` share a load of the weights.
    With ``parts`` every matrix has a parallel loop over as many equal parts of its rows; else one loop runs over all blocks.
    """
    matrices = tuple(Matrix(product.rows) for product in products)

    @prim_func(own=("writes", "loops") if parts else ())
    def kernel():
        rows = T.int64()
        hidden = [arg(f"h{i}", (1, rows, product.rank)) for i, product in enumerate(products)]
        weights, biases = [], []
        for i, product in enumerate(products):
            weights += form.args(f"w{i}", product.rows, product.rank)
            biases.append(arg(f"bias{i}", (1, 1, product.rows)) if product.biased else None)
        gate = arg("gate", (1, rows, products[0].rows)) if gated else None
        outs = [arg(f"out{i}", (1, rows, product.rows)) for i, product in enumerate(products)]

        def block_of_rows(i, block):
            product, bias = products[i], biases[i]
            start = None if bias is None else T.bind(load_block(bias, 0, block, product.rows))

            def finish(t, y):
                y = ACTIVATIONS[product.activation](y if start is None else y + start, LANES, exp)
                if gate is not None:
                    y = y * load_block(gate, t, block, product.rows)
                store_block(outs[i], y, t, block, product.rows)

            each_token_tile(hidden[i], 0, product.rank, lambda k: form.value(weights[i], block, k), tokens, finish)

        with root_block():
            if parts:
                each_part(matrices, parts, block_of_rows)
            else:
                each_block(matrices, LANES, block_of_rows)

    return kernel

"""Matrix products of one token of each of several sequences on NVIDIA's tensor cores: by how many there are."""

from __future__ import annotations

from functools import lru_cache

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import arg, prim_func, size
from ..product import Matrix, check_planes, operands
from ..rows import Rows
from .gemm_tensor_core import many_tokens
from .gemv_tensor_core import few_tokens

TOKENS = 8  # that share a load of the weights where they are few
MOST_FEW = 16  # tokens, with which weights are read twice; reading them once with large products takes longer


@lru_cache(None)
def gemv_or_gemm(
    matrices: tuple[Matrix, ...], columns: int, form: Rows, planes: int = 1, gated: bool = False, residual: bool = False
) -> tirx.PrimFunc:
    """(x, weights.. [, gate][, residual] -> out..); arguments as in ``gemm_tensor_core``. One of two kernels is launched."""
    check_planes(matrices, planes)

    @prim_func
    def kernel():
        rows = size("rows")
        x = arg("x", (planes, rows, columns), "float16")
        rest = operands(matrices, rows, columns, form, gated, residual)
        with T.If(rows <= MOST_FEW):
            with T.Then():
                few_tokens(matrices, columns, form, TOKENS, rows, x, rest)
            with T.Else():
                many_tokens(matrices, columns, form, rows, x, rest)

    return kernel

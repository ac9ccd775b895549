"""How kernels that TVM has made from operators run."""

from __future__ import annotations

import tvm
from tvm.relax.dpl import DFPattern, GlobalVarPattern, TuplePattern, is_op, wildcard
from tvm.s_tir import dlight

from ..targets import CompileTarget


def product() -> DFPattern:
    """A matrix product with the casts, the dequantization and the transposition of its operands."""
    dequantized = is_op("relax.call_tir")(
        GlobalVarPattern(), TuplePattern([wildcard(), wildcard()]), add_constraint=False
    )
    weight = is_op("relax.astype")(wildcard()) | dequantized | wildcard()
    x = is_op("relax.astype")(wildcard()) | wildcard()
    return is_op("relax.matmul")(x, is_op("relax.permute_dims")(weight))


def schedule(target: CompileTarget) -> tvm.transform.Pass:
    """DLight's rules for a kind of device."""
    gpu = dlight.gpu
    rules = [gpu.Matmul(), gpu.GEMV(), gpu.Reduction(), gpu.GeneralReduction(), gpu.Transpose(), gpu.Fallback()]
    return dlight.ApplyDefaultSchedule(*(rules if target.device == "gpu" else []))

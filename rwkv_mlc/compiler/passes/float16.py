"""Float16 on CPUs that have no instructions for it, where LLVM calls a function for every element."""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import tirx
from tvm.script.ir_builder import tirx as T


@tirx.transform.prim_func_pass(opt_level=0)
def widen_by_integers(kernel: tirx.PrimFunc, _mod: tvm.IRModule, _context: tvm.transform.PassContext) -> tirx.PrimFunc:
    """Convert finite float16 to float32 by moving their bits; infinities and NaN come out as finite numbers."""
    return kernel.with_body(tvm_ffi.structural_map(kernel.body, (tirx.Cast, _moved), order="post"))


def _moved(cast: tirx.Cast):
    source, wanted = cast.value.ty.dtype, cast.ty.dtype
    if not (source.startswith("float16") and wanted.startswith("float32")):
        return cast
    lanes = wanted.removeprefix("float32")

    def constant(value: int | float, dtype: str):
        number = tirx.const(value, dtype)
        return T.broadcast(number, int(lanes[1:])) if lanes else number

    bits = tirx.Cast(f"int32{lanes}", T.reinterpret(cast.value, dtype=f"int16{lanes}"))
    # The sign, which the cast has spread, and exponent and mantissa at their places in float32; the product corrects the
    # exponent's offset and turns a float32 that is subnormal into a normal one.
    bits = T.bitwise_and(T.shift_left(bits, constant(13, "int32")), constant(0x8FFFE000 - 2**32, "int32"))
    return T.reinterpret(bits, dtype=f"float32{lanes}") * constant(2.0**112, "float32")

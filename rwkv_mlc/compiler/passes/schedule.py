"""How kernels that TVM has made from operators run."""

from __future__ import annotations

import tvm
from tvm import tirx
from tvm.ir import TensorLoad
from tvm.relax.dpl import DFPattern, GlobalVarPattern, TuplePattern, is_op, wildcard
from tvm.s_tir import Schedule, dlight
from tvm.s_tir.dlight.analysis import normalize_prim_func
from tvm.s_tir.dlight.base import ScheduleRule, try_inline
from tvm.s_tir.schedule import SBlockRV
from tvm.target import Target

from ..targets import CompileTarget


def product() -> DFPattern:
    """A matrix product with the casts, the dequantization and the transposition of its operands."""
    x = is_op("relax.astype")(wildcard()) | wildcard()
    return is_op("relax.matmul")(x, is_op("relax.permute_dims")(_widened() | wildcard()))


def rows() -> DFPattern:
    """Rows of a matrix with the cast or the dequantization of these alone."""
    return is_op("relax.take")(_widened(), wildcard())


def _widened() -> DFPattern:
    """What is stored in another form, in float32."""
    stored = TuplePattern([wildcard(), wildcard()])
    dequantized = is_op("relax.call_tir")(GlobalVarPattern(), stored, add_constraint=False)
    return is_op("relax.astype")(wildcard()) | dequantized


class Matmul(dlight.gpu.Matmul):
    """DLight's rule, whose form for Metal's matrix units crashes the process, and whose form for phones makes vectors of as
    many scales as a tile of inputs has, a number that varies with groups of 40: both get the one of the other GPUs."""

    def apply(self, func: tirx.PrimFunc, target: Target, tunable: bool) -> Schedule | None:
        return super().apply(func, target if target.kind.name == "cuda" else Target("opencl"), tunable)


class Transpose(dlight.gpu.Transpose):
    """DLight's rule, which fails at a block that reads or stores where an array says."""

    def is_transpose(self, sch: Schedule, block_rv: SBlockRV) -> bool:
        store = sch.get(block_rv).body
        loads = isinstance(store, tirx.BufferStore) and isinstance(store.value, TensorLoad)
        indices = [*store.indices, *store.value.indices] if loads else []
        return all(isinstance(index, tirx.Var) for index in indices) and super().is_transpose(sch, block_rv)


class Parallel(ScheduleRule):
    """On CPUs, for which DLight has little: what feeds a block is computed where it is read, and threads share the outputs."""

    def apply(self, func: tirx.PrimFunc, target: Target, tunable: bool) -> Schedule | None:
        sch = Schedule(func)
        infos = normalize_prim_func(sch)
        for info in try_inline(sch, infos or []):
            spatial = len(info.dom_kind()) - len(info.dom_kind().lstrip("S"))
            if spatial:
                sch.parallel(sch.fuse(*sch.get_loops(info.block_rv)[:spatial]))
        return sch if infos else None


def schedule(target: CompileTarget) -> tvm.transform.Pass:
    """DLight's rules for GPUs, and our own for CPUs. Raises ValueError for a kernel of which a rule leaves a part to the host,
    which would compute with the addresses of a GPU."""
    gpu = dlight.gpu
    rules = [Matmul(), gpu.GEMV(), gpu.Reduction(), gpu.GeneralReduction(), Transpose(), gpu.Fallback()]
    if target.device == "cpu":
        return dlight.ApplyDefaultSchedule(Parallel())
    return tvm.transform.Sequential([dlight.ApplyDefaultSchedule(*rules), check_threads])


@tvm.transform.module_pass(opt_level=0)
def check_threads(mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
    """Every loop around a block of a kernel that TVM has made is begun by threads."""
    for name, function in mod.functions_items():
        if isinstance(function, tirx.PrimFunc) and "kernel" not in (function.attrs or {}):
            outermost = function.body.block.body
            for part in outermost.seq if isinstance(outermost, tirx.SeqStmt) else [outermost]:
                if not (isinstance(part, tirx.For) and part.kind == tirx.ForKind.THREAD_BINDING):
                    raise ValueError(f"{name.name_hint}: a part of the kernel belongs to no thread:\n{part}")
    return mod

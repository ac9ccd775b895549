"""Lowering in numbered phases; each phase's result can be dumped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import tvm
from tvm import relax

from ..artifact.disk import beside
from .debug_index import write_index
from .kernel_source import kernels_as_source
from .passes.cuda_graph import capture_cuda_graphs
from .passes.float16 import widen_by_integers
from .passes.memory import plan_memory
from .passes.merge import merge_kernels
from .passes.mlc import publish_for_mlc
from .passes.narrow import keep_in_float16
from .passes.schedule import product, rows, schedule
from .passes.stored import take_stored
from .passes.symbols import attach_symbols
from .passes.values import is_plain, list_kernels, return_values
from .targets import CompileTarget

transform = relax.transform

Pass = tvm.transform.Pass
Phase = tuple[str, Callable[["CompileTarget"], list[Pass]]]


def _float16(target: CompileTarget) -> list[Pass]:
    return [] if target.converts_float16 else [widen_by_integers]


def _merge(_: CompileTarget) -> list[Pass]:
    return [merge_kernels]


def _stored(_: CompileTarget) -> list[Pass]:
    return [take_stored]


def _narrow(_: CompileTarget) -> list[Pass]:
    return [keep_in_float16]


def _fuse(_: CompileTarget) -> list[Pass]:
    """A product, and what takes rows of a matrix, begin with what makes their operands, which TVM's own fusion leaves apart."""
    reading = transform.FuseOpsByPattern([("product", product()), ("rows", rows())])
    patterns = [transform.LegalizeOps(), transform.AnnotateTIROpPattern()]
    return [return_values, reading, *patterns, transform.FuseOps(), transform.FuseTIR(), list_kernels]


def _schedule(target: CompileTarget) -> list[Pass]:
    return [schedule(target)]


def _lower(_: CompileTarget) -> list[Pass]:
    return [transform.ToNonDataflow(), transform.RemovePurityChecking(), transform.CallTIRRewrite()]


def _memory(_: CompileTarget) -> list[Pass]:
    planned = [plan_memory, transform.LowerAllocTensor()]
    return [*planned, capture_cuda_graphs, transform.KillAfterLastUse()]


def _runtime(_: CompileTarget) -> list[Pass]:
    lowered = [transform.LowerRuntimeBuiltin(), transform.ComputePrimValue(), transform.VMShapeLower()]
    return [publish_for_mlc, *lowered, attach_symbols]


KERNELS: list[Phase] = [("1-float16", _float16), ("1-merge", _merge)]
OPERATORS: list[Phase] = [
    ("1-stored", _stored),
    ("1-narrow", _narrow),
    ("1-fuse", _fuse),
    ("1-schedule", _schedule),
    ("1-float16", _float16),
]
LOWERING: list[Phase] = [("2-lower", _lower), ("3-memory", _memory), ("4-runtime", _runtime)]
"""Every pass, in order, by the phase after which the module can be dumped; a phase may be empty for a target. A graph that is
written in kernels of ours, or in Relax's operators, goes through those of its kind and then through ``LOWERING``."""


IDLE = (
    "s_tir.CompactBufferAllocation",
    "s_tir.InjectPermutedLayout",
    "s_tir.InjectVirtualThread",
    "s_tir.InsertHoistIfThenElse",
    "tirx.RemoveNoOp",
)
"""Passes of TVM's that find nothing to do in our kernels, which declare buffers of the size that they use and compute nothing
in vain, and would take up to a third of the time of a build. Kernels that TVM has made need them."""


def lowering(plain: bool = False) -> tvm.transform.PassContext:
    """How TVM lowers kernels: without the ``IDLE`` passes unless the graph is ``plain``, and without its elimination of common
    subexpressions. LLVM and the drivers of GPUs have that too, and TVM's has the host pass parts of an index, about which
    the code generators cannot then know what it takes to load a vector."""
    return tvm.transform.PassContext(config={"tirx.disable_cse_tir": True}, disabled_pass=[] if plain else list(IDLE))


def compile_module(mod: tvm.IRModule, target: CompileTarget, dump_dir: Path | None = None) -> tvm.runtime.Executable:
    """Lower and generate code, that of a system library for a module with the attribute ``system_lib_prefix``; with
    ``dump_dir`` the module after every phase is written there as TVMScript, with an index (``debug_index``)."""

    def dump(name: str, module: tvm.IRModule) -> None:
        if dump_dir is not None:
            dump_dir.mkdir(parents=True, exist_ok=True)
            with beside(dump_dir / f"{name}.py") as path:
                path.write_text(module.script(), encoding="utf-8")

    dump("0-graph", mod)
    plain = is_plain(mod)
    listed = [*(OPERATORS if plain else KERNELS), *LOWERING]
    graph, phases = mod, [(name, found) for name, passes in listed if (found := passes(target))]
    with target.tvm, lowering(plain), kernels_as_source():
        for name, passes in phases:
            mod = tvm.transform.Sequential(passes)(mod)
            dump(name, mod)
        executable = relax.build(mod, target.tvm, relax_pipeline=None, exec_mode="bytecode")
    if dump_dir is not None:
        named = [("0-graph", []), *((name, [one.info.name for one in passes]) for name, passes in phases)]
        write_index(dump_dir, named, graph, mod, executable)
    return executable

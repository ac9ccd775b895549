"""Lowering in numbered phases; each phase's result can be dumped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import tvm
from tvm import relax, tirx

from ..artifact.disk import beside
from .debug_index import write_index
from .kernel_source import kernels_as_source
from .passes.cuda_graph import capture_cuda_graphs
from .passes.float16 import widen_by_integers
from .passes.merge import merge_kernels
from .targets import CompileTarget

transform = relax.transform


@tvm.transform.module_pass(opt_level=0)
def attach_symbols(mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
    """``AttachGlobalSymbol``, which puts a system library's prefix before the names of kernels, without their bodies at
    hand: TVM 0.27 fails to rewrite one that takes a buffer's address."""
    kernels = {name: f for name, f in mod.functions_items() if isinstance(f, tirx.PrimFunc)}
    hollow = mod.clone()
    for name, kernel in kernels.items():
        hollow.update_func(name, kernel.with_body(tirx.Evaluate(0)))
    named = transform.AttachGlobalSymbol()(hollow)
    prefix = mod.attrs["system_lib_prefix"] if mod.attrs and "system_lib_prefix" in mod.attrs else ""
    for name, kernel in kernels.items():
        symbol = prefix + name.name_hint
        named.update_func(named.get_global_var(symbol), kernel.with_attr("global_symbol", symbol))
    return named


PHASES: list[tuple[str, list[Callable]]] = [
    ("1-merge", [lambda: merge_kernels]),
    ("2-lower", [transform.ToNonDataflow, transform.RemovePurityChecking, transform.CallTIRRewrite]),
    (
        "3-memory",
        [
            transform.StaticPlanBlockMemory,
            transform.LowerAllocTensor,
            lambda: capture_cuda_graphs,
            transform.KillAfterLastUse,
        ],
    ),
    (
        "4-runtime",
        [
            transform.LowerRuntimeBuiltin,
            transform.ComputePrimValue,
            transform.VMShapeLower,
            lambda: attach_symbols,
        ],
    ),
]


def _options(target: CompileTarget) -> dict:
    """For GPUs without TVM's elimination of common subexpressions: it has the host pass parts of an index, about which the
    code generators cannot then know what it takes to load a vector."""
    return {"tirx.disable_cse_tir": True} if target.family == "gpu" else {}


def compile_module(mod: tvm.IRModule, target: CompileTarget, dump_dir: Path | None = None) -> tvm.runtime.Executable:
    """Lower and generate code, that of a system library for a module with the attribute ``system_lib_prefix``; with
    ``dump_dir`` the module after every phase is written there as TVMScript, with an index (``debug_index``)."""

    def dump(name: str, module: tvm.IRModule) -> None:
        if dump_dir is not None:
            dump_dir.mkdir(parents=True, exist_ok=True)
            with beside(dump_dir / f"{name}.py") as path:
                path.write_text(module.script(), encoding="utf-8")

    dump("0-graph", mod)
    graph = mod
    if not target.converts_float16:
        mod = widen_by_integers(mod)
    with target.tvm, tvm.transform.PassContext(config=_options(target)), kernels_as_source():
        for name, passes in PHASES:
            mod = tvm.transform.Sequential([make() for make in passes])(mod)
            dump(name, mod)
        executable = relax.build(mod, target.tvm, relax_pipeline=None, exec_mode="bytecode")
    if dump_dir is not None:
        passes = [("0-graph", []), *((name, [make().info.name for make in phase]) for name, phase in PHASES)]
        write_index(dump_dir, passes, graph, mod, executable)
    return executable

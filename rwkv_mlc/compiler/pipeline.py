"""Lowering in numbered phases; each phase's result can be dumped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import tvm
from tvm import relax

from ..artifact.disk import beside
from .targets import CompileTarget

transform = relax.transform

PHASES: list[tuple[str, list[Callable]]] = [
    ("1-lower", [transform.ToNonDataflow, transform.RemovePurityChecking, transform.CallTIRRewrite]),
    ("2-memory", [transform.StaticPlanBlockMemory, transform.LowerAllocTensor, transform.KillAfterLastUse]),
    (
        "3-runtime",
        [
            transform.LowerRuntimeBuiltin,
            transform.ComputePrimValue,
            transform.VMShapeLower,
            transform.AttachGlobalSymbol,
        ],
    ),
]


def compile_module(
    mod: tvm.IRModule, target: CompileTarget, dump_dir: Path | None = None, system_lib: bool = False
) -> tvm.runtime.Executable:
    """Lower and generate code; with ``dump_dir`` the module after every phase is written there as TVMScript."""

    def dump(name: str, module: tvm.IRModule) -> None:
        if dump_dir is not None:
            dump_dir.mkdir(parents=True, exist_ok=True)
            with beside(dump_dir / f"{name}.py") as path:
                path.write_text(module.script(), encoding="utf-8")

    dump("0-graph", mod)
    with target.tvm:
        for name, passes in PHASES:
            mod = tvm.transform.Sequential([make() for make in passes])(mod)
            dump(name, mod)
        return relax.build(mod, target.tvm, relax_pipeline=None, exec_mode="bytecode", system_lib=system_lib)

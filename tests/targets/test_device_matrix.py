"""Every generation x scheme x GPU target of the registries compiles: small models with one layer, in one library a target,
which passes every check that this machine can make. None is left out, and none is run: ``test_gpu_graph`` has the values of
every scheme on Vulkan, ``test_accuracy`` those of CPUs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tvm
from tvm import relax, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator

from rwkv_mlc.compiler import cuda
from rwkv_mlc.compiler.link import check_tools, export_library
from rwkv_mlc.compiler.pipeline import compile_module
from rwkv_mlc.compiler.targets import TARGETS, CompileTarget, resolve_target
from rwkv_mlc.errors import UserError
from rwkv_mlc.interfaces.module import build_module
from rwkv_mlc.interfaces.native import FUNCTIONS
from rwkv_mlc.models import GENERATIONS, resolve
from rwkv_mlc.quantization.schemes import SCHEMES
from rwkv_mlc.verification.checks import run_checks
from rwkv_mlc.verification.library import Library
from support.compiled import in_memory
from support.synthetic import synthetic_checkpoint

GPUS = [name for name in TARGETS if resolve_target(name).device == "gpu"]
SHAPE = {"hidden_size": 64, "layers": 1, "head_size": 16, "vocab_size": 64, "intermediate_size": 64}


@mutator
class Rename(PyExprMutator):
    """Calls what ``variables`` names instead of what a function called."""

    def __init__(self, variables: dict[str, tvm.ir.GlobalVar]):
        super().__init__()
        self.variables = variables

    def visit_global_var_(self, var: tvm.ir.GlobalVar) -> tvm.ir.GlobalVar:
        return self.variables[var.name_hint]


def together(modules: dict[str, tvm.IRModule]) -> tvm.IRModule:
    """One module with the functions of all, under the names of theirs; kernels that are equal are there once, which is
    what makes this much cheaper than many libraries."""
    builder = relax.BlockBuilder()
    for prefix, module in modules.items():
        functions = {variable.name_hint: function for variable, function in module.functions_items()}
        kernels = {name: f for name, f in functions.items() if isinstance(f, tirx.PrimFunc)}
        variables = {name: builder.add_func(kernel, name) for name, kernel in kernels.items()}
        for name, function in functions.items():
            if name not in kernels:
                renamed = Rename(variables).visit_expr(function).with_attr("global_symbol", f"{prefix}_{name}")
                builder.add_func(renamed, f"{prefix}_{name}")
    return builder.get()


def resolve_quickly(name: str) -> CompileTarget:
    """A target whose host code is not optimized: it only starts kernels."""
    host = {"kind": "llvm", "mtriple": resolve_target(name).triple, "opt-level": 0}
    architecture = {"arch": "sm_80"} if name == "cuda" else {}
    return resolve_target(json.dumps({"kind": name, "host": host, **architecture}))


@pytest.mark.parametrize("name", GPUS)
def test_every_generation_and_scheme(name, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(cuda, "images", list)  # without PTX, which compilers make on their way to machine code
    target = resolve_quickly(name)
    try:
        check_tools(target, target.suffix)
    except UserError as reason:
        pytest.skip(str(reason))
    modules = {}
    for generation in GENERATIONS:
        config, _, _ = resolve(in_memory(synthetic_checkpoint(generation, **SHAPE)))
        for scheme in SCHEMES.values():
            modules[f"rwkv{generation}_{scheme.name}".replace(".", "_")] = build_module(config, scheme, target)
    module, path = together(modules), tmp_path / f"all{target.suffix}"
    if target.suffix == ".tar":
        module = module.with_attr("system_lib_prefix", "all_models_")
    export_library(compile_module(module, target), target, path)
    library = Library.open(path)
    (executable,) = (module.data for module in library.modules if module.kind == "relax.VMExecutable")
    for prefix in modules:
        assert all(f"{prefix}_{phase}".encode() in executable for phase in FUNCTIONS)
    assert [outcome for outcome in run_checks(library) if outcome.status == "failed"] == []

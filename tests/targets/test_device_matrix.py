"""Every generation x scheme x GPU target of the registries compiles: small models with one layer, in one library a target,
which passes every check that this machine can make. None is left out, and none is run: ``test_gpu_graph`` has the values of
every scheme on Vulkan, ``test_accuracy`` those of CPUs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import tvm
from tvm import relax, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator

from rwkv_mlc.compiler import cuda
from rwkv_mlc.compiler.link import check_tools, export_library
from rwkv_mlc.compiler.pipeline import compile_module
from rwkv_mlc.compiler.targets import TARGETS, CompileTarget, resolve_target
from rwkv_mlc.config import RWKVConfig
from rwkv_mlc.errors import UserError
from rwkv_mlc.interfaces.module import build_module
from rwkv_mlc.interfaces.native import FUNCTIONS
from rwkv_mlc.models import GENERATIONS, resolve
from rwkv_mlc.quantization.schemes import SCHEMES
from rwkv_mlc.verification.checks import run_checks
from rwkv_mlc.verification.library import Library
from support.compiled import in_memory, only, resolve_quickly
from support.plain import PLAIN
from support.synthetic import synthetic_checkpoint

GPUS = [name for name in TARGETS if resolve_target(name).device == "gpu"]
SYMBOLIC = ("prefill", "batch_decode")  # the functions whose number of rows varies
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
        for scheme in SCHEMES.values():
            name = f"rwkv{generation}_{scheme.name}".replace(".", "_")
            modules[name] = build_module(config_of(generation), scheme, target)
    check(together(modules), target, tmp_path, [f"{prefix}_{phase}" for prefix in modules for phase in FUNCTIONS])


@pytest.mark.parametrize(
    "name, generation, scheme", [(name, *pair) for name in TARGETS if name != "llvm" for pair in PLAIN[name]]
)
def test_plain_family(name, generation, scheme, tmp_path: Path, monkeypatch):
    """Some of the same graphs in Relax's operators, with symbolic lengths: what fusion makes of group norms and of the rows of
    several sequences has kernels that DLight's rules can schedule."""
    monkeypatch.setattr(cuda, "images", list)
    target = resolve_quickly(name)
    try:
        check_tools(target, target.suffix)
    except UserError as reason:
        pytest.skip(str(reason))
    with only(SYMBOLIC):
        module = build_module(config_of(generation), SCHEMES[scheme], target, family="plain")
    check(module, target, tmp_path, SYMBOLIC)


def config_of(generation: str) -> RWKVConfig:
    return resolve(in_memory(synthetic_checkpoint(generation, **SHAPE)))[0]


def check(module: tvm.IRModule, target: CompileTarget, folder: Path, functions: Iterable[str]) -> None:
    """The module compiles, has the functions, and passes every check."""
    path = folder / f"all{target.suffix}"
    if target.suffix == ".tar":
        module = module.with_attr("system_lib_prefix", "all_models_")
    export_library(compile_module(module, target), target, path)
    library = Library.open(path)
    (executable,) = (module.data for module in library.modules if module.kind == "relax.VMExecutable")
    assert all(name.encode() in executable for name in functions)
    assert [outcome for outcome in run_checks(library) if outcome.status == "failed"] == []

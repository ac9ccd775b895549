"""Which kernels a library runs, and which named value each of them writes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import tvm
from tvm import relax

from ...graph.marks import VALUES
from ...schema import KernelValues, LibraryMetadata
from .memory import METADATA, with_body

CALLS = ("relax.call_tir", "relax.call_tir_inplace")


def is_plain(mod: tvm.IRModule) -> bool:
    """Whether functions of the module are written in Relax's operators."""
    return any(True for _ in _marked(mod))


@tvm.transform.module_pass(opt_level=0)
def return_values(mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
    """Have functions with the mark ``VALUES`` return these as well until ``list_kernels``, so that fusion stops at them and
    nothing is dead code that is wanted for its own sake.

    Raises ValueError where the values are not the outputs of the function's dataflow block."""
    mod = mod.clone()
    for name, function in _marked(mod):
        outputs = [
            b.var for b in _bindings(function) if not (isinstance(b.var, relax.DataflowVar) or _is_output(b.value))
        ]
        if len(outputs) != len(function.attrs[VALUES]):
            raise ValueError(f"{len(function.attrs[VALUES])} values have names, and {len(outputs)} are outputs")
        mod.update_func(name, _returning(function, relax.Tuple([function.body.body, *outputs]), function.body.blocks))
    return mod


@tvm.transform.module_pass(opt_level=0)
def list_kernels(mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
    """Have the metadata say, of functions with the mark ``VALUES``, what ``KernelOps.values`` says of the others, and have them
    return what they did before ``return_values``. To come when operators have become kernels, and before these are lowered."""
    mod = mod.clone()
    variable = mod.get_global_var(METADATA)
    described = LibraryMetadata.read(mod[variable].body.body.value)
    values = dict(described.values)
    for name, function in _marked(mod):
        values[name.name_hint] = _kernels(function)
        bindings = [binding for binding in _bindings(function) if not binding.var.same_as(function.body.body)]
        result, *_ = _returned(function)
        mod.update_func(name, _returning(function, result, [relax.DataflowBlock(bindings)]))
    text = described.model_copy(update={"values": values}).model_dump_json(by_alias=True)
    mod.update_func(variable, with_body(mod[variable], [], tvm.ir.StringImm(text)))
    return mod


def _marked(mod: tvm.IRModule) -> Iterator[tuple[tvm.ir.GlobalVar, relax.Function]]:
    for name, function in mod.functions_items():
        if isinstance(function, relax.Function) and function.attrs and VALUES in function.attrs:
            yield name, function


def _bindings(function: relax.Function) -> Iterator[relax.Binding]:
    return (binding for block in function.body.blocks for binding in block.bindings)


def _is_output(value: relax.Expr) -> bool:
    return isinstance(value, relax.Var) and not isinstance(value, relax.DataflowVar)


def _returning(function: relax.Function, result: relax.Expr, blocks: Sequence[relax.BindingBlock]) -> relax.Function:
    body = relax.SeqExpr(blocks, result)
    return relax.Function(function.params, body, result.ty, function.is_pure, function.attrs)


def _returned(function: relax.Function) -> list[relax.Expr]:
    """The fields of the tuple that a function returns."""
    tuples = [b.value for b in _bindings(function) if b.var.same_as(function.body.body)]
    return list((tuples[0] if tuples else function.body.body).fields)


def _kernels(function: relax.Function) -> tuple[KernelValues, ...]:
    """The kernel calls of a function in order."""
    calls: list[KernelValues] = []
    results: dict[
        relax.Var, tuple[int, list[int]]
    ] = {}  # the call that it holds results of, and which arguments those are
    for var, value in ((binding.var, binding.value) for binding in _bindings(function)):
        if getattr(getattr(value, "op", None), "name", None) in CALLS:
            results[var] = len(calls), _outputs(value)
            calls.append(KernelValues(value.args[0].name_hint, {}))
        elif isinstance(value, relax.TupleGetItem) and value.tuple_value in results:
            call, arguments = results[value.tuple_value]
            results[var] = call, [arguments[value.index]]
        elif isinstance(value, relax.Var) and value in results:
            results[var] = results[value]
    _, *outputs = _returned(function)
    for name, output in zip(function.attrs[VALUES], outputs, strict=True):
        call, (argument,) = results[output]
        if name:
            calls[call].outputs[argument] = str(name)
    return tuple(calls)


def _outputs(call: relax.Call) -> list[int]:
    """The positions of a kernel's results among its arguments."""
    given, count = len(call.args[1].fields), len(getattr(call.ty, "fields", [call.ty]))
    if call.op.name == "relax.call_tir":
        return [given + i for i in range(count)]
    new = itertools.count(given)
    return [int(index) if int(index) >= 0 else next(new) for index in call.attrs.inplace_indices]

"""One function in place of every run of kernels between two norms, where all shapes but the state's are static.

Decoding one token of a small model takes hundreds of short calls. Merged, each half block of a layer is one: the virtual
machine allocates and passes a tenth of the tensors, and the threads start once and meet at barriers between the kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

import tvm
import tvm_ffi
from tvm import relax, tirx
from tvm.s_tir.stmt import SBlock, SBlockRealize
from tvm.script.ir_builder import tirx as T
from tvm.tirx import ForKind

from ...graph.marks import MERGED

STARTS = ("norm_shift_mix_token", "layer_norm")  # kernels that begin a merged one


@dataclass(frozen=True)
class KernelCall:
    """A kernel call of a graph: output i is ``results[i]`` of ``types[i]`` and takes the place of the argument at position
    ``updates[i]``, or is a new tensor where that is -1."""

    kernel: tirx.PrimFunc
    args: list[relax.Expr]
    types: list[relax.TensorType]
    updates: list[int]
    results: list[relax.Var | None]


@tvm.transform.module_pass(opt_level=0)
def merge_kernels(mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
    """Merge the kernels of the functions that carry the mark ``MERGED``; equal ones become one."""
    builder = relax.BlockBuilder(mod)
    for name, function in mod.functions_items():
        if isinstance(function, relax.Function) and function.attrs and MERGED in function.attrs:
            builder.update_func(name, _merge_function(builder, mod, function))
    return relax.transform.DeadCodeElimination()(builder.get())


def _merge_function(builder: relax.BlockBuilder, mod: tvm.IRModule, function: relax.Function) -> relax.Function:
    (block,) = function.body.blocks
    before, after, groups, owners = [], [], [], {}
    for binding in block.bindings:
        value = binding.value
        if isinstance(value, relax.TupleGetItem) and value.tuple_value in owners:
            owners[value.tuple_value].results[value.index] = binding.var
        elif isinstance(value, tvm.ir.Call) and value.op.name.startswith("relax.call_tir"):
            call = owners[binding.var] = _kernel_call(mod, binding)
            if not groups or call.kernel.attrs["kernel"] in STARTS:
                groups.append([])
            groups[-1].append(call)
        else:
            (after if groups else before).append(binding)
    needed = {var for binding in after for var in relax.analysis.free_vars(binding.value)}
    merged = []
    for group in reversed(groups):
        merged = _merged_bindings(builder, group, needed) + merged
        needed.update(arg for call in group for arg in call.args)
    body = relax.SeqExpr([relax.DataflowBlock([*before, *merged, *after])], function.body.body)
    return relax.Function(function.params, body, function.ret_ty, function.is_pure, function.attrs)


def _kernel_call(mod: tvm.IRModule, binding: relax.VarBinding) -> KernelCall:
    call = binding.value
    kernel, args, (types,) = mod[call.args[0]], list(call.args[1].fields), call.ty_args
    several = isinstance(types, tvm.ir.TupleType)
    types = list(types.fields) if several else [types]
    updates = list(call.attrs.inplace_indices) if call.op.name == "relax.call_tir_inplace" else [-1] * len(types)
    return KernelCall(kernel, args, types, updates, [None] * len(types) if several else [binding.var])


def _merged_bindings(builder: relax.BlockBuilder, group: list[KernelCall], needed: set[relax.Expr]) -> list:
    """Bindings of one call that does what the calls of ``group`` do and gives the results among ``needed``."""
    produced = {result for call in group for result in call.results if result is not None}
    inputs = list(dict.fromkeys(arg for call in group for arg in call.args if arg not in produced))
    outputs = [
        (result, kind)
        for call in group
        for result, kind, update in zip(call.results, call.types, call.updates)
        if update == -1 and result in needed
    ]
    updated = [call.args[i] for call in group for i in call.updates if i != -1]
    kernel = _merged_kernel(group, inputs, [result for result, _ in outputs])
    name = builder.add_func(kernel, kernel.attrs["kernel"])
    indices = [inputs.index(arg) for arg in updated] + [-1] * len(outputs)
    types = [arg.ty for arg in updated] + [kind for _, kind in outputs]
    if len(types) == 1 and not updated:
        return [relax.VarBinding(outputs[0][0], relax.call_tir(name, inputs, types[0]))]
    whole = relax.DataflowVar("merged", relax.TupleType(types))
    call = relax.op.call_tir_inplace(name, inputs, indices, types)
    items = [(result, relax.TupleGetItem(whole, len(updated) + i)) for i, (result, _) in enumerate(outputs)]
    return [relax.VarBinding(whole, call), *(relax.VarBinding(*item) for item in items)]


def _merged_kernel(group: list[KernelCall], inputs: list[relax.Expr], outputs: list[relax.Var]) -> tirx.PrimFunc:
    """The kernels of ``group`` one after the other, from ``inputs`` to ``outputs``, in one parallel launch."""
    dimensions: dict[tirx.Var, tirx.Var] = {}

    def buffer(var: relax.Expr, name: str):
        shape = [
            d if isinstance(d, tirx.IntImm) else dimensions.setdefault(d, tirx.Var(d.name, "int64"))
            for d in var.ty.shape
        ]
        return tirx.decl_buffer(shape, var.ty.dtype, name)

    buffers = {var: buffer(var, f"in{i}") for i, var in enumerate(inputs)}
    buffers |= {var: buffer(var, f"out{i}") for i, var in enumerate(outputs)}
    params = list(buffers.values())
    allocations, steps = [], []
    for call in group:
        new = [result for result, update in zip(call.results, call.updates) if update == -1]
        for result in new:
            if result not in buffers:
                buffers[result] = buffer(result, f"local{len(allocations)}")
                allocations.append(tirx.AllocBuffer(buffers[result]))
        arguments = [buffers[var] for var in (*call.args, *new)]
        kernel = _static(call.kernel, arguments)
        declarations = [tirx.DeclBuffer(param, data=whole.data) for param, whole in zip(kernel.params, arguments)]
        steps += _steps(kernel, declarations)
    region = [step.statement(following) for step, following in zip(steps, [*steps[1:], None])]
    launch = _pragma("parallel_launch_point", tirx.stmt_seq(*region))
    alive = [
        tirx.Evaluate(T.address_of(allocation.buffer[(0,) * len(allocation.buffer.shape)]))
        for allocation in allocations
    ]
    root = SBlock([], [], [], "root", tirx.stmt_seq(*allocations, *alive, launch, *alive))
    attrs = dict(group[0].kernel.attrs) | {"kernel": _name(group), "tirx.noalias": False}
    return tirx.PrimFunc(params, SBlockRealize([], True, root), attrs=tvm.ir.make_node("ir.DictAttrs", **attrs))


def _name(group: list[KernelCall]) -> str:
    kernels = [call.kernel.attrs["kernel"] for call in group]
    if len(kernels) == 1:
        return kernels[0]
    if any("recurrence" in call.kernel.attrs for call in group):
        return "time_mixing"
    return "channel_mixing" if kernels[0].startswith("norm_shift_mix") else "head"


def _static(kernel: tirx.PrimFunc, buffers: list) -> tirx.PrimFunc:
    """A copy of a kernel, with variables of its own, for the shapes of ``buffers``."""

    def shaped(param, buffer):
        """Dimensions that are numbers in the kernel stay as they are, for their types' sake."""
        shape = [own if isinstance(own, tirx.IntImm) else given for own, given in zip(param.shape, buffer.shape)]
        return tirx.decl_buffer(shape, buffer.dtype, buffer.name)

    kernel = tvm_ffi.get_global_func("s_tir.RenewDefs")(kernel)
    return kernel.specialize({param: shaped(param, buffer) for param, buffer in zip(kernel.params, buffers)})


@dataclass(frozen=True)
class Step:
    """A parallel loop after what every thread does by itself, and what its kernel's ``own`` says of both."""

    setup: list[tirx.Stmt]
    loop: tirx.For
    own: tuple[str, ...]
    first: bool

    def statement(self, following: Step | None) -> tirx.Stmt:
        """The step, and a barrier at its end unless every thread can go on without the results of the others."""
        loop = self.loop
        if following is not None and not self._independent(following):
            loop = _pragma("parallel_barrier_when_finish", loop)
        return tirx.stmt_seq(*self.setup, loop)

    def _independent(self, following: Step) -> bool:
        if not following.first:
            return "loops" in self.own
        same_parts = int(self.loop.extent) == int(following.loop.extent)
        return same_parts and "writes" in self.own and "reads" in following.own


def _steps(kernel: tirx.PrimFunc, declarations: list[tirx.Stmt]) -> list[Step]:
    """What runs outside of a kernel's parallel loops is done by every thread if that is allowed, else by the first."""
    body, own, outside = kernel.body.block.body, tuple(kernel.attrs["own"]), []
    steps: list[Step] = []
    for stmt in body.seq if isinstance(body, tirx.SeqStmt) else [body]:
        if not (isinstance(stmt, tirx.For) and stmt.kind == ForKind.PARALLEL and int(stmt.extent) > 1):
            outside.append(stmt)
            continue
        if outside and not kernel.attrs["replicated"]:
            steps.append(Step(declarations, _first_thread(outside), (), not steps))
            outside = []
        steps.append(Step([*declarations, *outside], stmt, own, not steps))
        outside = []
    if outside:
        steps.append(Step(declarations, _first_thread(outside), (), not steps))
    return steps


def _first_thread(statements: list[tirx.Stmt]) -> tirx.For:
    """A parallel loop of which the first thread runs the statements and the others nothing."""
    serial = [
        tirx.For(s.loop_var, s.min, s.extent, ForKind.SERIAL, s.body) if isinstance(s, tirx.For) else s
        for s in statements
    ]
    thread = tirx.Var("thread", "int32")
    only = tirx.IfThenElse(thread == 0, tirx.stmt_seq(*serial), None)
    return tirx.For(thread, tirx.IntImm("int32", 0), tirx.IntImm("int32", 2), ForKind.PARALLEL, only)


def _pragma(name: str, stmt: tirx.Stmt) -> tirx.AttrStmt:
    return tirx.AttrStmt(tirx.IntImm("int32", 0), f"pragma_{name}", tirx.IntImm("int32", 1), stmt)

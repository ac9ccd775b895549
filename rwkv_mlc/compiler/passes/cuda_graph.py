"""Decoding as one CUDA graph: hundreds of launches that the driver keeps and repeats with one call.

A graph repeats its kernels with the very pointers they had, so that what they read and write must stay where it is:
temporary memory belongs to the virtual machine, and the caller gives the same tensors every time.
"""

from __future__ import annotations

import tvm
from tvm import relax

from ...graph.marks import CAPTURED
from ...schema import CAPTURED_PREFIX

STORAGE = "relax.memory.alloc_storage"


@tvm.transform.module_pass(opt_level=0)
def capture_cuda_graphs(mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
    """Beside every function ``f`` that carries the mark ``CAPTURED``, add ``captured_f`` with the same parameters.

    Its first call in a virtual machine runs the kernels and records them, later calls launch the record: every call must
    bring the same tensors, with other values in them, and the result is the same tensor each time. To come after memory is
    planned; all memory must be of static size."""
    builder = relax.BlockBuilder(mod)
    marked = [
        (name.name_hint, function)
        for name, function in mod.functions_items()
        if isinstance(function, relax.Function) and function.attrs and CAPTURED in function.attrs
    ]
    for number, (name, function) in enumerate(marked):
        _capture(builder, name, function, number)
    return builder.get()


def _capture(builder: relax.BlockBuilder, name: str, function: relax.Function, number: int) -> None:
    """Three functions: one allocates what lasts, one launches kernels that use it, and one has the first two called once."""
    function = relax.utils.copy_with_new_vars(function)
    bindings = [binding for block in function.body.blocks for binding in block.bindings]
    storages = [b.var for b in bindings if _is_storage(b)]
    allocated = relax.SeqExpr([relax.BindingBlock([b for b in bindings if _is_storage(b)])], relax.Tuple(storages))
    kinds = relax.TupleType([storage.ty for storage in storages])
    allocate = builder.add_func(_private([], allocated, kinds), f"{name}_storage")

    launches = relax.SeqExpr([relax.BindingBlock([b for b in bindings if not _is_storage(b)])], function.body.body)
    launch = builder.add_func(_private([*function.params, *storages], launches, function.ret_ty), f"{name}_launches")

    params = [relax.Var(param.name, param.ty) for param in function.params]
    with builder.function(f"{CAPTURED_PREFIX}{name}", params, {"relax.force_pure": True}):
        kept = builder.emit(_cached("get_cached_alloc", [allocate], number, kinds))
        args = relax.Tuple([*params, *(builder.emit(kept[i]) for i in range(len(storages)))])
        builder.emit_func_output(builder.emit(_cached("run_or_capture", [launch, args], number, function.ret_ty)))


def _is_storage(binding: relax.Binding) -> bool:
    value = binding.value
    return isinstance(value, tvm.ir.Call) and getattr(value.op, "name", None) == STORAGE


def _private(params: list[relax.Var], body: relax.Expr, result: tvm.ir.Type) -> relax.Function:
    return relax.Function(params, body, result, is_pure=True).with_attr("relax.force_pure", True)


def _cached(builtin: str, args: list[relax.Expr], number: int, result: tvm.ir.Type) -> relax.Expr:
    """A call of one of TVM's functions for CUDA graphs, which know a function by its number."""
    args = [*args, tvm.tirx.IntImm("int64", number)]
    return relax.op.call_builtin_with_ctx(f"vm.builtin.cuda_graph.{builtin}", args, ty_args=result)

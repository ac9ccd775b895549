"""Values in float16 where a target's memory and a scheme ask for it."""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from ...graph.marks import NARROW, VALUES


@tvm.transform.module_pass(opt_level=0)
def keep_in_float16(mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
    """The values of the mark ``NARROW`` are rounded to float16, and each operator that reads one widens it for itself; all
    else, and every sum, stays float32."""
    rewriter = KeepInFloat16(mod)
    for name, function in mod.functions_items():
        if isinstance(function, relax.Function) and function.attrs and VALUES in function.attrs:
            narrow = {str(value) for value in function.attrs[NARROW]}
            kept = [str(value) in narrow for value in function.attrs[VALUES]]
            rewriter.builder_.update_func(name, rewriter.of(function, kept))
    return rewriter.builder_.get()


@mutator
class KeepInFloat16(PyExprMutator):
    """Rewrites the bindings of values that have a name."""

    def of(self, function: relax.Function, kept: Sequence[bool]) -> relax.Function:
        self.kept = iter(kept)
        self.narrow: dict[relax.Var, relax.Var] = {}
        return self.visit_expr(function)

    def visit_var_(self, var: relax.Var) -> relax.Expr:
        if var in self.narrow:
            return self.builder_.emit(relax.op.astype(self.narrow[var], "float32"))
        return super().visit_var_(var)

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        if isinstance(binding.var, relax.DataflowVar) or not next(self.kept, False):
            super().visit_var_binding_(binding)
            return
        wide = self.builder_.emit(self.visit_expr(binding.value))
        self.narrow[binding.var] = self.builder_.emit_output(relax.op.astype(wide, "float16"))

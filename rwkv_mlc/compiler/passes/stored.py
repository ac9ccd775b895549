"""What is stored in the place of the parameters that it stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate

import tvm
from tvm import relax, te, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator

from ...graph.marks import STORED
from ...quantization.group import GroupForm
from ...quantization.schemes import FloatForm, Form

ITEM = "vm.builtin.tuple_getitem"


@tvm.transform.module_pass(opt_level=0)
def take_stored(mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
    """Functions that carry the mark ``STORED`` take, as the fields of their last parameter, the tensors that are stored instead
    of float32 parameters, which they compute: by a cast, or by the kernel ``dequantize``, bit for bit what the scheme means."""
    rewriter = TakeStored(mod)
    for name, function in mod.functions_items():
        if isinstance(function, relax.Function) and function.attrs and STORED in function.attrs:
            rewriter.builder_.update_func(name, rewriter.of(function, [_form(form) for form in function.attrs[STORED]]))
    return rewriter.builder_.get()


def _form(mark: Mapping) -> Form:
    if "dtype" in mark:
        return FloatForm(str(mark["dtype"]))
    bits, group, transposed = int(mark["bits"]), int(mark["group"]), bool(mark["transposed"])
    return GroupForm(bits, group, str(mark["scale_dtype"]), transposed)


@mutator
class TakeStored(PyExprMutator):
    """Rewrites the calls that take a parameter."""

    def of(self, function: relax.Function, forms: Sequence[Form]) -> relax.Function:
        self.params, self.forms = function.params[-1], forms
        self.first = [0, *accumulate(2 if isinstance(form, GroupForm) else 1 for form in forms)]
        return self.visit_expr(function)

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        if not (_is_item(call) and call.args[1].same_as(self.params)):
            return super().visit_call_(call)
        index = int(call.args[2])
        form, first = self.forms[index], self.first[index]
        shape = [int(extent) for extent in call.ty_args[0].shape]
        if isinstance(form, FloatForm):
            stored = self._item(first, shape, form.dtype)
            return stored if form.dtype == "float32" else relax.op.astype(self.builder_.emit(stored), "float32")
        (weight, scale), emit = form.shapes((shape[0], shape[1])), self.builder_.emit
        q_weight, q_scale = self._item(first, weight, "uint32"), self._item(first + 1, scale, form.scale_dtype)
        kernel = partial(dequantize, shape, form)
        return self.builder_.call_te(kernel, emit(q_weight), emit(q_scale), primfunc_name_hint="dequantize")

    def _item(self, index: int, shape: Sequence[int], dtype: str) -> relax.Expr:
        kind, args = relax.TensorType(list(shape), dtype), [self.params, tirx.IntImm("int64", index)]
        return relax.op.call_pure_packed(relax.ExternFunc(ITEM), *args, ty_args=kind)


def _is_item(call: relax.Call) -> bool:
    is_packed = getattr(call.op, "name", None) == "relax.call_pure_packed"
    return is_packed and isinstance(call.args[0], relax.ExternFunc) and call.args[0].global_symbol == ITEM


def dequantize(shape: Sequence[int], form: GroupForm, q_weight: te.Tensor, q_scale: te.Tensor) -> te.Tensor:
    """float32 [N, K]: ``GroupForm.dequantize``."""

    def weight(row, column):
        word, group = column // form.per_word, column // form.group
        at, scaled = ((word, row), (group, row)) if form.transposed else ((row, word), (row, group))
        shift = tirx.Cast("uint32", column % form.per_word * form.bits)
        field = (q_weight[at] >> shift) & tirx.const(2**form.bits - 1, "uint32")
        level = tirx.Cast("float32", tirx.Cast("int32", field) - form.max_int)
        return level * tirx.Cast("float32", q_scale[scaled])

    return te.compute(shape, weight, "dequantize")

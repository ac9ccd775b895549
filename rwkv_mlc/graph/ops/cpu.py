"""The CPU family: every operation a hand-written kernel, float32 activations, weights in 16-row blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tir_kernels.cpu.border_slots import border_slots
from tir_kernels.cpu.embedding import embedding
from tir_kernels.cpu.expand import expand
from tir_kernels.cpu.expand_mix import expand_mix
from tir_kernels.cpu.fill import fill
from tir_kernels.cpu.gemm import gemm
from tir_kernels.cpu.gemm_bytes import gemm_bytes
from tir_kernels.cpu.gemv import gemv
from tir_kernels.cpu.group_norm import group_norm
from tir_kernels.cpu.halve import halve
from tir_kernels.cpu.last_rows import last_rows
from tir_kernels.cpu.layer_norm import layer_norm
from tir_kernels.cpu.list_inputs import list_inputs
from tir_kernels.cpu.lists import AHEAD
from tir_kernels.cpu.norm_shift_mix import norm_shift_mix
from tir_kernels.cpu.norm_shift_mix_token import norm_shift_mix_token
from tir_kernels.cpu.outliers import OutlierLists
from tir_kernels.cpu.packed import (
    Packed,
    PackedFloat,
    PackedGroup,
    StoredFloat,
    StoredGroup,
    Tiled,
    TiledFloat,
    TiledGroup,
)
from tir_kernels.cpu.quantize_activation import DIGITS, quantize_activation
from tir_kernels.cpu.quantize_bytes import quantize_bytes
from tir_kernels.cpu.quantize_inputs import quantize_inputs
from tir_kernels.cpu.sample import sample
from tir_kernels.cpu.simd import LANES
from tir_kernels.cpu.sparse_gemv import sparse_gemv
from tir_kernels.cpu.stream import stream
from tir_kernels.cpu.token_matrix import token_matrix
from tir_kernels.expansion import Expansion
from tir_kernels.product import Matrix
from tir_kernels.rows import Rows

from ...models import Parameter
from ...models.vocabulary import Unmixed
from ...quantization.layouts import MAPPED
from ...quantization.schemes import FloatForm, GroupForm
from ..state import StateRef
from ..weights import MatrixWeight, Norm, row_form
from .kernels import CommonKernels, KernelOps, Plane, Product

TOKENS = 8  # that share a load of a thin matrix in prompts


@dataclass
class CPUOps(KernelOps):
    """See ``models.vocabulary.Ops``. With ``activation_bytes`` the head, which reads the last tokens only, reads floats."""

    device = "cpu"
    kernels = CommonKernels(embedding, halve, last_rows, stream, fill)
    merges_kernels = True

    def __post_init__(self):
        self.slots = [self.state.slots] if self.state.in_place else []
        single = self.phase == "decode" and self.batch == 1
        self.parts = self.model.generation.recurrence(self.config, self.device).parts if single else None
        if self.phase == "decode" and self.state.in_place:
            self.borders = self.slots * 2
        else:
            args = [self.tokens, self.segment_ends, *self.slots]
            self.borders = self.call(border_slots(self.state.in_place), args, [[self.rows]] * 2, dtype="int32")

    @staticmethod
    def form_of(parameter: Parameter, form: FloatForm | GroupForm) -> Packed | Rows:
        """Embeddings as they are stored, matrices in tiles where inputs can be left out; fields of 3 bits fill no line."""
        if parameter.role in ("embedding", "table"):
            return row_form(form)
        if isinstance(form, FloatForm):
            return (TiledFloat if parameter.sparse_input else PackedFloat)(form.dtype)
        tiled = parameter.sparse_input and 8 % form.bits == 0
        return (TiledGroup if tiled else PackedGroup)(form.bits, form.group, form.scale_dtype)

    @staticmethod
    def layout_of(parameter: Parameter, form: FloatForm | GroupForm) -> tuple[str, ...]:
        tensors, transposed = (2, form.transposed) if isinstance(form, GroupForm) else (1, False)
        if parameter.role in ("vector", "embedding"):
            return ("stored",) * tensors
        if parameter.role == "table":
            return (MAPPED,) * tensors
        packed = CPUOps.form_of(parameter, form)
        if isinstance(packed, TiledGroup):
            prefix = "transposed_" if transposed else ""
            return f"{prefix}lines_{form.bits}", f"{prefix}line_scales_{form.bits}"
        if isinstance(packed, TiledFloat) and form.dtype == "float16":
            return ("lines_16",)
        return ("column_blocks" if transposed else "row_blocks",) * tensors

    def matrix_dtype(self, *names: str) -> str:
        return "float32"

    def emit_sample(self) -> None:
        self.add_sample(sample(self.config.vocab_size), lambda _: [])

    def layer_norm(self, x, norm: Norm):
        kernel = layer_norm(self.config.hidden_size, self.config.norm_epsilon(norm.name))
        return self.call(kernel, [x, norm.weight, norm.bias], [x.ty.shape], [norm.name])[0]

    def norm_shift_mix(self, x, norm: Norm, mixes: dict, state: StateRef, unmixed: Unmixed = ()) -> dict[str, Plane]:
        given = self.config.hidden_size, len(mixes), self.config.layer_norm_epsilon
        planes = [*mixes, *unmixed]
        if self.parts:
            parts = math.gcd(
                self.parts, self.config.hidden_size
            )  # all of them, unless the time mixing has another size
            kernel, borders = norm_shift_mix_token(*given, parts, self.state.in_place, len(unmixed)), self.slots
        else:
            kernel, borders = norm_shift_mix(*given, self.state.in_place, len(unmixed)), self.borders
        inputs = [x, norm.weight, norm.bias, *mixes.values()]
        shape, names = [len(planes), self.rows, self.config.hidden_size], self.mixed_names(norm.name, mixes, unmixed)
        (mixed,) = self.update(kernel, inputs, [state], borders, [shape], [names])
        return {target: Plane(mixed, i) for i, target in enumerate(planes)}

    def linears(self, products: Sequence[Product], gate=None, residual=None):
        x, form, columns = products[0][0].tensor, products[0][1].form, products[0][1].shape[1]
        outputs = tuple(Matrix(m.shape[0], activation, plane=plane.index) for plane, m, activation in products)
        planes, rows = int(x.ty.shape[0]), x.ty.shape[1]
        read = max(output.plane for output in outputs) + 1  # integers stand for those planes alone
        inputs, given = [x], {"gated": gate is not None, "residual": residual is not None}
        if self.phase == "decode" or not rows.same_as(self.rows):  # single tokens, or the last ones that the head reads
            integer_dot = self.target.integer_dot_for(form.bits) if isinstance(form, PackedGroup) else None
            lists = 1
            if integer_dot:
                lists = self.parts if self.parts and columns % (form.group * self.parts) == 0 else 1
                inputs, planes = self._quantize(x, read, columns, form, lists), read
            own = len(outputs) > 1 and self.parts and all(m.rows % (LANES * self.parts) == 0 for m in outputs)
            parts = self.parts if own else None
            kernel = gemv(outputs, columns, form, integer_dot, planes, **given, parts=parts, lists=lists)
        elif (places := self.activation_bytes) and isinstance(form, PackedGroup):
            inputs, planes = self._quantize_bytes(x, read, columns, form, places), read
            kernel = gemm_bytes(outputs, columns, form, places, self.target.integer_dot, planes, **given)
        else:
            kernel = gemm(outputs, columns, form, self.target.gemm_tile, planes, **given)
        args = [*inputs, *(tensor for _, m, _ in products for tensor in m.tensors)]
        args += [extra for extra in (gate, residual) if extra is not None]
        names = self.product_names(products, gate is not None, residual is not None)
        return self.call(kernel, args, [[1, rows, m.rows] for m in outputs], names)

    def linear(self, x, matrix: MatrixWeight, gate=None, residual=None):
        product = (Plane(x, 0), matrix, None)
        if self.phase == "prefill" or not isinstance(matrix.form, Tiled):
            return self.linears([product], gate, residual)[0]
        (outputs, columns), form = matrix.shape, matrix.form
        integer_dot = self.target.integer_dot_for(form.bits) if isinstance(form, TiledGroup) else None
        lists = self._quantize_inputs(x, columns, form) if integer_dot else self._list_inputs(x, columns, form)
        fused = {"gated": gate is not None, "residual": residual is not None}
        kernel = sparse_gemv(outputs, columns, form, integer_dot, **fused)
        args = [*lists, *matrix.tensors, *(extra for extra in (gate, residual) if extra is not None)]
        return self.call(kernel, args, [self.row_shape(outputs)], self.product_names([product], **fused))[0]

    def expand(self, products: Mapping[str, tuple], gate=None):
        (_, matrix, *_), *_ = products.values()
        outputs = tuple(
            Expansion(*m.shape, activation, bias is not None) for _, m, bias, activation in products.values()
        )
        parts = self.parts if self.parts and all(o.rows % (LANES * self.parts) == 0 for o in outputs) else None
        kernel = expand(outputs, matrix.form, self._tokens_of_thin(), gate is not None, parts)
        args = [h for h, *_ in products.values()]
        for _, m, bias, _ in products.values():
            args += [*m.tensors, *([] if bias is None else [bias])]
        args += [] if gate is None else [gate]
        names = [self.role_beside(matrix, role) for role in products]
        return self.call(kernel, args, [self.row_shape(o.rows) for o in outputs], names)

    def expand_mix(self, mixed: Mapping[str, Plane], h, matrix: MatrixWeight, mixes: dict):
        (planes, now), rank, channels = mixed["now"], matrix.shape[1], self.config.hidden_size
        kernel = expand_mix(
            len(mixes), channels, rank, matrix.form, self._tokens_of_thin(), int(planes.ty.shape[0]), now
        )
        names = tuple(self.role_beside(matrix, f"att.mixed_{target}") for target in mixes)
        args, shape = [h, *matrix.tensors, *mixes.values(), planes], [len(mixes), self.rows, channels]
        (out,) = self.call(kernel, args, [shape], [names])
        return {target: Plane(out, i) for i, target in enumerate(mixes)}

    def token_matrix(self, x, table: MatrixWeight, role: str):
        kernel = token_matrix(table.shape[0], int(x.ty.shape[2]), table.form)
        return self.call(kernel, [self.tokens, x, *table.tensors], [x.ty.shape], [self.role_beside(table, role)])[0]

    def _tokens_of_thin(self) -> int:
        """How many tokens share a load of a thin matrix."""
        return 1 if self.phase == "decode" else TOKENS

    def group_norm(self, x, norm: Norm, groups: int, epsilon: float, gate=None, added=None):
        size, fused = self.config.attention_size // groups, {"gated": gate is not None, "added": added is not None}
        kernel = group_norm(groups, size, epsilon, **fused)
        args = [x, norm.weight, norm.bias, *(extra for extra in (added, gate) if extra is not None)]
        return self.call(kernel, args, [x.ty.shape], [norm.name if gate is None else self.beside(x, "gated")])[0]

    def _quantize(self, x, inputs: int, columns: int, form: PackedGroup, parts: int):
        rows = x.ty.shape[1]
        groups = form.groups(columns)
        shapes = [
            [inputs, rows, DIGITS, groups * form.words * len(form.quads)],
            [inputs, rows, groups],
            [inputs, rows, DIGITS, groups],
            [inputs, rows, OutlierLists(columns, form, parts).size],
        ]
        kernel = quantize_activation(columns, form, parts)
        return self.call(kernel, [x], shapes, dtype=["int32", "float32", "int32", "int32"])

    def _list_inputs(self, x, columns: int, form: Tiled):
        group = form.group if isinstance(form, TiledGroup) else columns
        entries = [self.rows, columns + AHEAD]
        shapes = [entries, entries, [self.rows, -(-columns // group) + 1]]
        return self.call(list_inputs(columns, group), [x], shapes, dtype=["float32", "int32", "int32"])

    def _quantize_inputs(self, x, columns: int, form: TiledGroup):
        padded, groups = form.padded(columns), form.groups(columns)
        outliers = [OutlierLists(columns, form).size]
        shapes = [[DIGITS, padded // 4], [padded + AHEAD], [groups + 1], [groups], [DIGITS, groups], outliers]
        dtypes = ["int32", "int32", "int32", "float32", "int32", "int32"]
        kernel = quantize_inputs(columns, form)
        return self.call(kernel, [x], [[self.rows, *shape] for shape in shapes], dtype=dtypes)

    def _quantize_bytes(self, x, inputs: int, columns: int, form: PackedGroup, places: int):
        rows = x.ty.shape[1]
        groups = form.groups(columns)
        shapes = [
            [inputs, rows, places, groups * form.words * len(form.quads)],
            [inputs, rows, groups],
            [inputs, rows, OutlierLists(columns, form).size],
        ]
        return self.call(quantize_bytes(columns, form, places), [x], shapes, dtype=["int32", "float32", "int32"])


class StoredCPUOps(CPUOps):
    """The same with parameters as they are stored, for callers that load them so; nothing is left out of a product."""

    @staticmethod
    def form_of(parameter: Parameter, form: FloatForm | GroupForm) -> Packed | Rows:
        if parameter.role in ("embedding", "table"):
            return row_form(form)
        return (
            StoredFloat(form.dtype)
            if isinstance(form, FloatForm)
            else StoredGroup(form.bits, form.group, form.scale_dtype)
        )

    @staticmethod
    def layout_of(_: Parameter, form: FloatForm | GroupForm) -> tuple[str, ...]:
        return ("stored",) * (2 if isinstance(form, GroupForm) else 1)

"""The plain family: what every word of ``models.vocabulary`` means, in Relax's own operators and nothing fused by hand.

All is float32 here, and a parameter is the matrix or vector that it stands for. How it is stored, what is kept in float16,
which operators share a kernel and how that runs is the business of the compiler's passes (``compiler.pipeline.PLAIN``). The
recurrence alone is a kernel of ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from tvm import relax
from tvm.relax import op

from tir_kernels.keep_rows import keep_rows
from tir_kernels.rows import RowFloat

from ...models import Parameter
from ...quantization.schemes import Form, GroupForm
from ..marks import NARROW, STORED, VALUES
from ..state import StateRef
from ..weights import MatrixWeight, Norm
from .cpu import CPUOps
from .gpu import GPUOps
from .kernels import ACTIVATED, KernelOps, Names, Plane, Product

ACTIVATIONS = {
    "sigmoid": op.sigmoid,
    "silu": op.nn.silu,  # x * sigmoid(x)
    "squared_relu": lambda x: op.square(op.nn.relu(x)),
}


class PlainOps(KernelOps):
    """See ``models.vocabulary.Ops``. Every value with a name is an output of the dataflow block, beyond which no operators
    are fused; the mark ``VALUES`` lists them, and ``compiler.passes.values`` the kernels that write them."""

    merges_kernels = False

    def __post_init__(self) -> None:
        self.marks[STORED] = [asdict(self.model.scheme.form(p.role)) for p in self.model.parameters]
        self.marks |= {VALUES: [], NARROW: []}
        if self.phase == "prefill":
            self.position = self.emit(op.arange(0, self.rows, 1, "int32"))
            ends, position = op.expand_dims(self.segment_ends, 0), op.expand_dims(self.position, 1)
            self.sequence = self.emit(
                op.sum(op.astype(op.less_equal(ends, position), "int32"), 1)
            )  # [T]: whose row it is
            self.begun = self.emit(
                op.sum(op.astype(op.equal(ends, position), "int32"), 1)
            )  # [T]: 1 where another one ended

    @staticmethod
    def form_of(_: Parameter, form: Form) -> RowFloat:
        return RowFloat("float32")

    @staticmethod
    def layout_of(_: Parameter, form: Form) -> tuple[str, ...]:
        return ("stored",) * (2 if isinstance(form, GroupForm) else 1)

    def matrix_dtype(self, *names: str) -> str:
        return "float32"

    # The words

    def embedding(self, tokens: relax.Expr, table: MatrixWeight) -> relax.Expr:
        return self.named(table.name, op.take(*table.tensors, op.expand_dims(tokens, 0), axis=0))

    def layer_norm(self, x: relax.Expr, norm: Norm) -> relax.Expr:
        normed = self._normalized(x, self.config.norm_epsilon(norm.name))
        return self.named(norm.name, op.add(op.multiply(normed, norm.weight), norm.bias), read=norm.name == "ln_out")

    def norm_shift_mix(
        self, x: relax.Expr, norm: Norm, mixes: dict[str, relax.Expr], state: StateRef
    ) -> Mapping[str, Plane]:
        """mu x_t + (1 - mu) x_{t-1}, where the state holds the x before the first."""
        x = self.layer_norm(x, norm)
        before = self._rows_before(x, state)
        change = self.emit(op.subtract(x, before))
        mixed = {
            target: self.named(name, op.add(before, op.multiply(mix, change)), read=True)
            for name, (target, mix) in zip(self.mixed_names(norm.name, mixes), mixes.items(), strict=True)
        }
        self._keep(state, self.last_rows(x))
        return {target: Plane(value, 0) for target, value in mixed.items()}

    def linears(self, products: Sequence[Product]) -> list[relax.Expr]:
        return [self._activated(self.linear(plane.tensor, matrix), matrix, name) for plane, matrix, name in products]

    def linear(
        self,
        x: relax.Expr,
        matrix: MatrixWeight,
        gate: relax.Expr | None = None,
        residual: relax.Expr | None = None,
    ) -> relax.Expr:
        (weight,) = matrix.tensors
        (name,) = self.product_names([(Plane(x, 0), matrix, None)])
        out = self.named(name, op.matmul(x, op.permute_dims(weight)))
        if gate is not None:
            out = self.named(self.beside(out, "gated"), op.multiply(gate, out))
        if residual is not None:
            out = self.named(self.beside(out, "residual"), op.add(residual, out))
        return out

    def recurrence(self, inputs: list[relax.Expr], states: list[StateRef], role: str) -> relax.Expr:
        feeds_matrix = self.model.generation.recurrence(self.config, self.device).feeds_matrix
        return self.named(
            f"blocks.{states[0].layer}.{role}", super().recurrence(inputs, states, role), read=feeds_matrix
        )

    def group_norm(
        self, x: relax.Expr, norm: Norm, groups: int, epsilon: float, gate: relax.Expr | None = None
    ) -> relax.Expr:
        by_group = self._normalized(op.reshape(x, [1, self.rows, groups, -1]), epsilon)
        out = op.add(op.multiply(op.reshape(by_group, x.ty.shape), norm.weight), norm.bias)
        out = self.named(norm.name, out, read=gate is None)
        return out if gate is None else self.named(self.beside(out, "gated"), op.multiply(out, gate), read=True)

    def halve(self, x: relax.Expr) -> relax.Expr:
        return self.emit(op.multiply(x, relax.const(0.5)))

    def last_rows(self, x: relax.Expr) -> relax.Expr:
        if self.phase == "decode":
            return x
        return self.emit(op.take(x, op.subtract(self.segment_ends, relax.const(1)), axis=1))

    # What they are made from

    def emit(self, expr: relax.Expr) -> relax.Var:
        return self.builder.emit(expr)

    def named(self, name: str, expr: relax.Expr, read: bool = False) -> relax.Var:
        """An output, with a name unless it is there for its own sake; ``read`` says that matrices read it."""
        value = self.builder.emit_output(expr)
        self.names[value] = name
        self.marks[VALUES].append(name)
        if read and super().matrix_dtype(name) == "float16":
            self.marks[NARROW].append(name)
        return value

    def _activated(self, x: relax.Expr, matrix: MatrixWeight, activation: str | None) -> relax.Expr:
        if activation is None:
            return x
        half_block, _, role = matrix.name.rpartition(".")
        name = f"{half_block}.{ACTIVATED[activation].format(role)}"
        return self.named(name, ACTIVATIONS[activation](x), read=activation == "squared_relu")

    def _normalized(self, x: relax.Expr, epsilon: float) -> relax.Expr:
        """Zero mean and unit variance over the last axis."""
        centered = self.emit(op.subtract(x, op.mean(x, -1, keepdims=True)))
        variance = op.mean(op.square(centered), -1, keepdims=True)
        return op.divide(centered, op.sqrt(op.add(variance, relax.const(epsilon))))

    def _rows_before(self, x: relax.Expr, state: StateRef) -> relax.Expr:
        """x_{t-1} for every row of x [1, T, C]: of the call before, where a sequence goes on."""
        (kept,) = self.state.read([state])
        if self.state.slots is not None:
            kept = op.take(kept, self.state.slots, axis=0)
        if self.phase == "decode":
            return self.emit(op.expand_dims(kept, 0))
        one, zero = relax.const(1), relax.const(0)
        first = op.logical_or(op.equal(self.position, zero), op.greater(self.begun, zero))
        inside = op.take(x, op.maximum(op.subtract(self.position, one), zero), axis=1)
        between = op.expand_dims(op.take(kept, self.sequence, axis=0), 0)
        return self.emit(op.where(op.reshape(first, [1, self.rows, 1]), between, inside))

    def _keep(self, state: StateRef, x: relax.Expr) -> None:
        """The last rows [1, B, C] as the state of the next call."""
        rows = self.emit(op.squeeze(x, 0))
        if self.state.in_place:
            (pool,) = self.state.read([state])
            kernel = self.builder.add_func(keep_rows(self.config.hidden_size), "keep_rows")
            rows = self.named("", op.call_tir_inplace(kernel, [pool, rows, self.state.slots], 0, pool.ty))
        self.state.write([state], [rows])

    def _record(self, kernel: object, first: int, results: list[relax.Expr], names: Sequence[Names]) -> None:
        """The kernels are listed when all are there."""


@dataclass
class PlainCPUOps(PlainOps, CPUOps):
    """On CPUs, where what is not the model's own (choosing tokens, measuring the machine) is the kernels of ``CPUOps``."""


@dataclass
class PlainGPUOps(PlainOps, GPUOps):
    """The same on GPUs. What matrices read is in the scheme's float type, as in ``GPUOps``."""

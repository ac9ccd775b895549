"""The plain family: what every word of ``models.vocabulary`` means, in Relax's own operators and nothing fused by hand.

All is float32 here, and a parameter is the matrix or vector that it stands for. How that is stored, what is in float16, which
operators share a kernel and how it runs is up to ``compiler.pipeline.OPERATORS``. Only what writes states is kernels of ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial

from tvm import relax
from tvm.relax import op

from tir_kernels.keep_rows import keep_rows
from tir_kernels.rows import RowFloat

from ...models import Parameter
from ...models.vocabulary import Unmixed
from ...quantization.schemes import Form, GroupForm
from ..marks import NARROW, STORED, VALUES
from ..state import StateRef
from ..weights import MatrixWeight, Norm
from .cpu import CPUOps
from .gpu import GPUOps
from .kernels import KernelOps, Names, Plane, Product

ACTIVATIONS = {
    "sigmoid": op.sigmoid,
    "silu": op.nn.silu,  # x * sigmoid(x)
    "squared_relu": lambda x: op.square(op.nn.relu(x)),
    "tanh": op.tanh,
    "exp_minus_exp": lambda x: op.exp(op.negative(op.exp(x))),
    "bounded_decay": lambda x: op.exp(op.multiply(op.sigmoid(x), relax.const(-math.exp(-0.5)))),
}
# -1 is the first row; the mode that trusts all indices warns of that in every build
take = partial(op.take, mode="clip")


class PlainOps(KernelOps):
    """See ``models.vocabulary.Ops``. Every value with a name is an output of the dataflow block, beyond which no operators
    are fused; the mark ``VALUES`` lists them, and ``compiler.passes.values`` the kernels that write them."""

    merges_kernels = False

    def __post_init__(self) -> None:
        self.marks[STORED] = [asdict(self.model.scheme.form(p.role)) for p in self.model.parameters]
        self.marks |= {VALUES: [], NARROW: []}
        if self.phase == "prefill":
            emit, position = self.builder.emit, op.arange(0, self.rows, 1, "int32")
            self.earlier = emit(op.subtract(position, relax.const(1)))  # [T]: the row before
            ends, row = op.expand_dims(self.segment_ends, 0), op.expand_dims(position, 1)
            self.sequence = emit(op.sum(op.astype(op.less_equal(ends, row), "int32"), 1))  # [T]: whose row it is
            begun = op.sum(op.astype(op.equal(ends, row), "int32"), 1)  # [T]: 1 where another one ended
            first = op.logical_or(op.less(self.earlier, relax.const(0)), op.greater(begun, relax.const(0)))
            self.first = emit(op.reshape(first, [1, self.rows, 1]))

    @staticmethod
    def form_of(_: Parameter, form: Form) -> RowFloat:
        return RowFloat("float32")

    @staticmethod
    def layout_of(_: Parameter, form: Form) -> tuple[str, ...]:
        return ("stored",) * (2 if isinstance(form, GroupForm) else 1)

    def matrix_dtype(self, *names: str) -> str:
        return "float32"

    def embedding(self, tokens, table: MatrixWeight):
        return self.named(table.name, take(*table.tensors, op.expand_dims(tokens, 0), axis=0))

    def layer_norm(self, x, norm: Norm):
        normed = self._normalized(x, self.config.norm_epsilon(norm.name))
        return self.named(norm.name, op.add(op.multiply(normed, norm.weight), norm.bias), read=norm.name == "ln_out")

    def norm_shift_mix(self, x, norm: Norm, mixes: dict, state: StateRef, unmixed: Unmixed = ()):
        """mu x_t + (1 - mu) x_{t-1}, where the state holds the x before the first."""
        x = self.layer_norm(x, norm)
        before = self._rows_before(x, state)
        change = self.builder.emit(op.subtract(x, before))
        mixed = {
            target: self.named(name, op.add(before, op.multiply(mix, change)), read=True)
            for name, (target, mix) in zip(self.mixed_names(norm.name, mixes), mixes.items(), strict=True)
        }
        self._keep(state, self.last_rows(x))
        return {target: Plane(value, 0) for target, value in {**mixed, "now": x, "before": before}.items()}

    def linears(self, products: Sequence[Product]):
        return [self.linear(plane.tensor, matrix, activation=activation) for plane, matrix, activation in products]

    def linear(self, x, matrix: MatrixWeight, gate=None, residual=None, activation: str | None = None):
        (name,) = self.product_names([(Plane(x, 0), matrix, None)])
        out = self.named(name, op.matmul(x, op.permute_dims(*matrix.tensors)))
        if activation is not None:
            (name,) = self.product_names([(Plane(x, 0), matrix, activation)])
            read = activation == "squared_relu" and not self.config.is_float32(matrix.name)
            out = self.named(name, ACTIVATIONS[activation](out), read)
        if gate is not None:
            out = self.named(self.beside(out, "gated"), op.multiply(gate, out))
        if residual is not None:
            out = self.named(self.beside(out, "residual"), op.add(residual, out))
        return out

    def expand(self, products: Mapping[str, tuple], gate=None):
        results = []
        for role, (h, matrix, bias, activation) in products.items():
            out, name = self.linear(h, matrix), self.role_beside(matrix, role)
            if name != matrix.name:
                out = out if bias is None else op.add(out, bias)
                out = out if activation is None else ACTIVATIONS[activation](out)
                out = self.named(name, out if gate is None else op.multiply(gate, out), read=gate is not None)
            results.append(out)
        return results

    def expand_mix(self, mixed: Mapping[str, Plane], h, matrix: MatrixWeight, mixes: dict):
        (weight,), (height, rank), channels = matrix.tensors, matrix.shape, self.config.hidden_size
        now, before = mixed["now"].tensor, mixed["before"].tensor
        change, result = self.builder.emit(op.subtract(before, now)), {}
        for j, (target, mix) in enumerate(mixes.items()):
            first = j * height // len(mixes)
            below = op.strided_slice(weight, [0], [first], [first + channels])
            own = op.strided_slice(h, [2], [j * rank], [(j + 1) * rank])
            change_of_mix = self.builder.emit(op.matmul(own, op.permute_dims(below)))
            value = op.add(now, op.multiply(change, op.add(mix, change_of_mix)))
            result[target] = Plane(self.named(self.role_beside(matrix, f"att.mixed_{target}"), value, read=True), 0)
        return result

    def token_matrix(self, x, table: MatrixWeight, role: str):
        size = int(x.ty.shape[2])
        own = op.reshape(take(*table.tensors, self.tokens, axis=0), [self.rows, size, size])
        out = op.sum(op.multiply(op.expand_dims(op.squeeze(x, 0), 2), own), 1)
        return self.named(self.role_beside(table, role), op.expand_dims(out, 0), read=True)

    def recurrence(self, inputs: list[relax.Expr], states: list[StateRef], *roles: str):
        read = self.model.generation.recurrence(self.config, self.device).feeds_matrix
        outputs = super().recurrence(inputs, states, *roles)
        return [self.named(f"blocks.{states[0].layer}.{role}", out, read) for role, out in zip(roles, outputs)]

    def group_norm(self, x, norm: Norm, groups: int, epsilon: float, gate=None, added=None):
        by_group = self._normalized(op.reshape(x, [1, self.rows, groups, -1]), epsilon)
        scaled = op.add(op.multiply(op.reshape(by_group, x.ty.shape), norm.weight), norm.bias)
        normed = self.named(norm.name, scaled, read=gate is None)
        out = normed if added is None else op.add(normed, added)
        return out if gate is None else self.named(self.beside(normed, "gated"), op.multiply(out, gate), read=True)

    def halve(self, x):
        return self.builder.emit(op.multiply(x, relax.const(0.5)))

    def last_rows(self, x):
        last = op.subtract(self.segment_ends, relax.const(1))
        return x if self.phase == "decode" else self.builder.emit(take(x, last, axis=1))

    def named(self, name: str, expr, read: bool = False):
        """An output, with a name unless it is there for its own sake; ``read`` says that matrices read it."""
        value = self.builder.emit_output(expr)
        self.names[value] = name
        self.marks[VALUES].append(name)
        if read and super().matrix_dtype(name) == "float16":
            self.marks[NARROW].append(name)
        return value

    def _normalized(self, x, epsilon: float):
        """Zero mean and unit variance over the last axis."""
        centered = self.builder.emit(op.subtract(x, op.mean(x, -1, keepdims=True)))
        variance = op.mean(op.square(centered), -1, keepdims=True)
        return op.divide(centered, op.sqrt(op.add(variance, relax.const(epsilon))))

    def _rows_before(self, x, state: StateRef):
        """x_{t-1} for every row of x [1, T, C]: of the call before, where a sequence goes on."""
        (kept,) = self.state.read([state])
        if self.state.slots is not None:
            kept = take(kept, self.state.slots, axis=0)
        if self.phase == "decode":
            return self.builder.emit(op.expand_dims(kept, 0))
        between = op.expand_dims(take(kept, self.sequence, axis=0), 0)
        return self.builder.emit(op.where(self.first, between, take(x, self.earlier, axis=1)))

    def _keep(self, state: StateRef, x) -> None:
        """The last rows [1, B, C] as the state of the next call."""
        rows = self.builder.emit(op.squeeze(x, 0))
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

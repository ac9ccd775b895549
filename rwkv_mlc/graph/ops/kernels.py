"""What the families of kernels have in common: emitting kernel calls, and which named value each of them writes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from tvm import relax, tirx

from tir_kernels.sampling import Request

from ...config import RWKVConfig
from ...models.generation import Device
from ...models.vocabulary import Unmixed
from ...schema import FunctionSpec, KernelValues, TensorSpec
from ..state import StateAccess, StateRef
from ..target import GraphTarget
from ..weights import MatrixWeight

if TYPE_CHECKING:
    from ..model import GraphModel

Names = str | tuple[str, ...] | None
"""What one output is called: its name, one for every plane of its first axis, or none where it is of no interest by itself."""

READERS = {"ln1": "att", "ln2": "ffn"}
"""What the mixed inputs after a norm are named for: the half block that reads them."""
ACTIVATED = {
    None: "{}",
    "squared_relu": "k_squared",
    "sigmoid": "{}_sigmoid",
    "silu": "{}_silu",
    "tanh": "{}_tanh",
}


class Plane(NamedTuple):
    """Input ``index`` of those that lie in one tensor, [inputs, T, K]."""

    tensor: relax.Expr
    index: int


class CommonKernels(NamedTuple):
    """The factories of those kernels that take the same arguments in every family."""

    embedding: Callable[..., tirx.PrimFunc]
    halve: Callable[..., tirx.PrimFunc]
    last_rows: Callable[..., tirx.PrimFunc]
    stream: Callable[[], tirx.PrimFunc]
    fill: Callable[[], tirx.PrimFunc]


Product = tuple[Plane, MatrixWeight, str | None]
"""What a matrix reads, the matrix, and what is applied to each output, a key of ``ACTIVATED``."""


@dataclass
class KernelOps(ABC):
    """Base of the families whose operations are kernels: what they share of ``models.vocabulary.Ops``.

    Values are named by place and role, ``blocks.0.att.key``, in every generation and family alike; ``values`` lists them call
    by call, in the order in which they run.

    ``phase`` chooses the kernels: ``decode`` for one token of every sequence, where weights are read at the memory's speed,
    ``prefill`` for many. ``activation_bytes`` of integers hold what the matrices of the blocks read, or 0 of floats.
    ``marks`` are those of ``graph.marks`` that the words ask for."""

    device: ClassVar[Device]  # whose kernels these are
    kernels: ClassVar[CommonKernels]
    merges_kernels: ClassVar[bool]  # those of ``decode`` become a few: compiler.passes.merge
    form_of: ClassVar[Callable]  # of a parameter and its stored form: how kernels read it
    layout_of: ClassVar[Callable]  # the same: the layouts of ``quantization.layouts`` in which they want its tensors

    builder: relax.BlockBuilder
    model: GraphModel
    phase: Literal["prefill", "decode"]
    tokens: relax.Expr
    segment_ends: relax.Expr
    state: StateAccess
    activation_bytes: int = 0
    values: list[KernelValues] = field(default_factory=list, init=False)
    names: dict[relax.Expr, Names] = field(default_factory=dict, init=False)
    further: dict[str, FunctionSpec] = field(default_factory=dict, init=False)
    marks: dict[str, object] = field(default_factory=dict, init=False)

    @property
    def config(self) -> RWKVConfig:
        return self.model.config

    @property
    def target(self) -> GraphTarget:
        return self.model.target

    @property
    def rows(self) -> tirx.PrimExpr:
        return self.tokens.ty.shape[0]

    @property
    def batch(self) -> tirx.PrimExpr:
        return self.segment_ends.ty.shape[0]

    def row_shape(self, channels: int) -> list:
        """The shape of one row a token."""
        return [1, self.rows, channels]

    @property
    def sequences(self) -> list[relax.Expr]:
        """What tells a kernel where the tokens of each sequence lie, and its state."""
        ends = [self.segment_ends] if self.phase == "prefill" else []
        return ends if self.state.slots is None else [*ends, self.state.slots]

    def embedding(self, tokens: relax.Expr, table: MatrixWeight) -> relax.Expr:
        kernel = self.kernels.embedding(*table.shape, table.form)
        return self.call(kernel, [tokens, *table.tensors], [self.row_shape(table.shape[1])], [table.name])[0]

    def halve(self, x: relax.Expr) -> relax.Expr:
        return self.call(self.kernels.halve(self.config.hidden_size), [x], [x.ty.shape])[0]

    def last_rows(self, x: relax.Expr) -> relax.Expr:
        if self.phase == "decode":
            return x
        channels = self.config.hidden_size
        return self.call(self.kernels.last_rows(channels), [x, self.segment_ends], [[1, self.batch, channels]])[0]

    def recurrence(self, inputs: list[relax.Expr], states: list[StateRef], *roles: str) -> list[relax.Expr]:
        """What the generation's recurrent kernel makes of ``inputs`` and ``states``, named by its roles."""
        recurrence = self.model.generation.recurrence(self.config, self.device)
        names = [f"blocks.{states[0].layer}.{role}" for role in roles]
        dtype = self.matrix_dtype(*names) if recurrence.feeds_matrix else "float32"
        narrow = {} if dtype == "float32" else {"dtype": dtype}
        staged = {"async_copies": True} if recurrence.stages and self.target.tensor_cores else {}
        kernel = recurrence.kernel(phase=self.phase, in_place=self.state.in_place, **narrow, **staged)
        shapes = [inputs[0].ty.shape] * len(roles)
        return self.update(kernel, inputs, states, self.sequences, shapes, names, dtype)

    def call(
        self,
        kernel: tirx.PrimFunc,
        args: list[relax.Expr],
        shapes: list[list],
        names: Sequence[Names] = (),
        dtype: str | list[str] = "float32",
    ) -> list[relax.Expr]:
        """Emit one kernel call; returns its outputs."""
        dtypes = [dtype] * len(shapes) if isinstance(dtype, str) else dtype
        types = [relax.TensorType(shape, dtype) for shape, dtype in zip(shapes, dtypes)]
        name = self.builder.add_func(kernel, kernel.attrs["kernel"])
        call = self.builder.emit(relax.call_tir(name, args, types if len(types) > 1 else types[0]))
        results = [self.builder.emit(call[i]) for i in range(len(types))] if len(types) > 1 else [call]
        self._record(name, len(args), results, names)
        return results

    def update(
        self,
        kernel: tirx.PrimFunc,
        inputs: list[relax.Expr],
        states: list[StateRef],
        sequences: list[relax.Expr],
        shapes: list[list],
        names: Sequence[Names] = (),
        dtype: str = "float32",
    ) -> list[relax.Expr]:
        """Emit a kernel call that takes (inputs, states, sequences) and updates the states; returns its new outputs."""
        tensors = self.state.read(states)
        args = [*inputs, *tensors, *sequences]
        kept, new = [tensor.ty for tensor in tensors], [relax.TensorType(shape, dtype) for shape in shapes]
        name = self.builder.add_func(kernel, kernel.attrs["kernel"])
        if self.state.in_place:
            first = len(inputs)
            indices = [*range(first, first + len(states)), *([-1] * len(shapes))]
            call = self.builder.emit(relax.op.call_tir_inplace(name, args, indices, [*kept, *new]))
            results = [self.builder.emit(call[i]) for i in range(len(kept) + len(new))]
            updated, created = results[: len(states)], results[len(states) :]
        else:
            call = self.builder.emit(relax.call_tir(name, args, [*new, *kept]))
            results = [self.builder.emit(call[i]) for i in range(len(kept) + len(new))]
            created, updated = results[: len(shapes)], results[len(shapes) :]
        self.state.write(states, updated)
        self._record(name, len(args), created, names)
        return created

    def beside(self, value: relax.Expr, role: str) -> str:
        """The name of another role of the half block that ``value`` belongs to."""
        return f"{self.names[value].rpartition('.')[0]}.{role}"

    def role_beside(self, matrix: MatrixWeight, role: str) -> str:
        """The name of a role such as ``att.decay`` of the block that a matrix belongs to."""
        return f"{'.'.join(matrix.name.split('.')[:2])}.{role}"

    def mixed_names(self, norm: str, targets: Iterable[str], unmixed: Unmixed = ()) -> tuple[str, ...]:
        """The names of the mixed inputs after a norm such as ``blocks.0.ln1``, and of the norm where it is given itself."""
        block, _, kind = norm.rpartition(".")
        return (*(f"{block}.{READERS[kind]}.mixed_{target}" for target in targets), *([norm] if unmixed else []))

    def product_names(self, products: Sequence[Product], gated: bool = False, residual: bool = False) -> list[str]:
        """The names of the products of matrices such as ``blocks.0.att.key``, by what is fused with them."""

        def of(matrix: str, activation: str | None) -> str:
            half_block, _, role = matrix.rpartition(".")
            if not half_block:
                return "logits"
            if residual or gated:
                return f"{half_block}.{'residual' if residual else 'gated'}"
            return f"{half_block}.{ACTIVATED[activation].format(role)}"

        return [of(matrix.name, activation) for _, matrix, activation in products]

    @abstractmethod
    def matrix_dtype(self, *names: str) -> str:
        """The dtype of values of these names that matrices read."""

    @abstractmethod
    def emit_sample(self) -> None:
        """Add the function that chooses tokens: ``add_sample``."""

    def add_sample(self, kernel: tirx.PrimFunc, memory: Callable[[tirx.PrimExpr], list[relax.TensorType]]) -> None:
        """Add ``sample`` (logits, requests, penalties, padding -> tokens), whose arguments ``tir_kernels.sampling`` explains;
        ``memory`` gives what the kernel needs to work in for so many tokens."""
        batch, rows, entries, ids = (tirx.Var(name, "int64") for name in ("B", "rows", "N", "M"))
        shapes = {"requests": [batch, len(Request._fields)], "penalties": [entries, 2], "padding": [ids]}
        integers = {name: relax.TensorType(shape, "int32") for name, shape in shapes.items()}
        logits = relax.TensorType([1, rows, self.config.vocab_size], "float32")
        tokens = relax.TensorType([batch], "int32")
        self.add_function("sample", kernel, {"logits": logits, **integers}, tokens, memory(batch))

    def emit_probes(self) -> None:
        """Add functions that measure the machine: ``stream`` (x float32 [blocks, n] -> sums [blocks]) and ``fill`` (x) read and
        write x at the memory's speed."""
        blocks, extent = tirx.Var("blocks", "int64"), tirx.Var("extent", "int64")
        x = relax.TensorType([blocks, extent], "float32")
        self.add_function("stream", self.kernels.stream(), {"x": x}, relax.TensorType([blocks], "float32"))
        self.add_function("fill", self.kernels.fill(), {"x": x})

    def add_function(
        self,
        name: str,
        kernel: tirx.PrimFunc,
        inputs: dict[str, relax.TensorType],
        result: relax.TensorType | None = None,
        memory: Sequence[relax.TensorType] = (),
    ) -> None:
        """Add a function of one kernel; without a ``result`` it writes to its first input. ``memory`` are outputs of the
        kernel that nobody wants."""
        args = [relax.Var(name, kind) for name, kind in inputs.items()]
        with self.builder.function(name, args):
            function = self.builder.add_func(kernel, f"{name}_alone")
            if result is None:
                call = relax.op.call_tir_inplace(function, args, [0], [args[0].ty])
            else:
                call = relax.call_tir(function, args, [result, *memory] if memory else result)
            emitted = self.builder.emit(call)
            self.builder.emit_func_output(self.builder.emit(emitted[0]) if memory else emitted)
        arguments = tuple(_spec(name, kind) for name, kind in inputs.items())
        self.further[name] = FunctionSpec(arguments=arguments, result=_spec("out", result or args[0].ty))

    def _record(self, kernel, first: int, results: list[relax.Expr], names: Sequence[Names]) -> None:
        named = dict(zip(results, names))
        self.names.update(named)
        outputs = {first + i: name for i, name in enumerate(named.values()) if name is not None}
        self.values.append(KernelValues(kernel.name_hint, outputs))


def _spec(name: str, kind: relax.TensorType) -> TensorSpec:
    shape = tuple(int(n) if isinstance(n, tirx.IntImm) else n.name for n in kind.shape)
    return TensorSpec(name=name, shape=shape, dtype=str(kind.dtype.dtype))

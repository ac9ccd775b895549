"""What the families of kernels have in common: emitting kernel calls, and which named value each of them writes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from tvm import relax, tirx

from ...compiler.targets import CompileTarget
from ...config import RWKVConfig

Names = str | tuple[str, ...] | None
"""Of one output: its name, one for every plane of its first axis, or none where it is of no interest by itself."""

HALVES = {"ln1": "att", "ln2": "ffn"}
ACTIVATED = {None: "{}", "squared_relu": "k_squared", "sigmoid": "{}_sigmoid", "silu": "{}_silu"}


@dataclass(frozen=True)
class ValueRecord:
    """One kernel call: the kernel's name in the module, and the names of what it writes by the position of the argument."""

    kernel: str
    outputs: dict[int, Names]


@dataclass
class KernelOps(ABC):
    """Base of the families whose operations are kernels. Values are named by place and role, ``blocks.0.att.key``, in every
    generation and family alike; ``values`` lists them call by call, in the order in which they run."""

    builder: relax.BlockBuilder
    config: RWKVConfig
    target: CompileTarget
    phase: Literal["prefill", "decode"]
    tokens: relax.Expr
    segment_ends: relax.Expr
    slots: relax.Expr
    values: list[ValueRecord] = field(default_factory=list, init=False)
    names: dict[relax.Expr, Names] = field(default_factory=dict, init=False)

    @property
    def rows(self) -> tirx.PrimExpr:
        return self.tokens.ty.shape[0]

    @property
    def batch(self) -> tirx.PrimExpr:
        return self.segment_ends.ty.shape[0]

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
        args: list[relax.Expr],
        in_place: list[int],
        shapes: list[list],
        names: Sequence[Names] = (),
        dtype: str | list[str] = "float32",
    ) -> tuple[list[relax.Expr], list[relax.Expr]]:
        """Emit a kernel call that updates ``args[i]`` for i in ``in_place``; returns the updated and the new tensors."""
        dtypes = [dtype] * len(shapes) if isinstance(dtype, str) else dtype
        new = [relax.TensorType(shape, dtype) for shape, dtype in zip(shapes, dtypes)]
        types = [args[i].ty for i in in_place] + new
        name = self.builder.add_func(kernel, kernel.attrs["kernel"])
        indices = [*in_place, *([-1] * len(shapes))]
        call = self.builder.emit(relax.op.call_tir_inplace(name, args, indices, types))
        results = [self.builder.emit(call[i]) for i in range(len(types))]
        updated, created = results[: len(in_place)], results[len(in_place) :]
        self._record(name, len(args), created, names)
        return updated, created

    def beside(self, value: relax.Expr, role: str) -> str:
        """The name of another role of the half block that ``value`` belongs to."""
        return f"{self.names[value].rpartition('.')[0]}.{role}"

    def mixed_names(self, norm: str, targets: Sequence[str]) -> tuple[str, ...]:
        """Of the mixed inputs behind the norm ``blocks.0.ln1``."""
        block, _, kind = norm.rpartition(".")
        return tuple(f"{block}.{HALVES[kind]}.mixed_{target}" for target in targets)

    def product_names(
        self, matrices: Sequence[str], activations: Sequence[str | None], gated: bool = False, residual: bool = False
    ) -> list[str]:
        """Of the products of matrices such as ``blocks.0.att.key``, by what is fused with them."""

        def of(matrix: str, activation: str | None) -> str:
            half, _, role = matrix.rpartition(".")
            if not half:
                return "logits"
            if residual or gated:
                return f"{half}.{'residual' if residual else 'gated'}"
            return f"{half}.{ACTIVATED[activation].format(role)}"

        return [of(matrix, activation) for matrix, activation in zip(matrices, activations)]

    @abstractmethod
    def emit_probes(self) -> None:
        """Add functions that measure the machine: ``add_memory_probes``, and what else a family has."""

    def add_memory_probes(self, stream: tirx.PrimFunc, fill: tirx.PrimFunc) -> None:
        """Add ``stream`` (x float32 [blocks, n] -> sums [blocks]) and ``fill`` (x), which read and write x at the memory's
        speed."""
        blocks, extent = tirx.Var("blocks", "int64"), tirx.Var("extent", "int64")
        x = relax.TensorType([blocks, extent], "float32")
        self.add_probe("stream", stream, {"x": x}, relax.TensorType([blocks], "float32"))
        self.add_probe("fill", fill, {"x": x})

    def add_probe(
        self,
        name: str,
        kernel: tirx.PrimFunc,
        inputs: dict[str, relax.TensorType],
        result: relax.TensorType | None = None,
    ) -> None:
        """Add a function of one kernel; without a ``result`` it writes to its first input."""
        args = [relax.Var(name, kind) for name, kind in inputs.items()]
        with self.builder.function(name, args):
            function = self.builder.add_func(kernel, f"{name}_probe")
            if result is None:
                call = relax.op.call_tir_inplace(function, args, [0], [args[0].ty])
            else:
                call = relax.call_tir(function, args, result)
            self.builder.emit_func_output(self.builder.emit(call))

    def _record(self, kernel, first: int, results: list[relax.Expr], names: Sequence[Names]) -> None:
        named = dict(zip(results, names))
        self.names.update(named)
        outputs = {first + i: name for i, name in enumerate(named.values()) if name is not None}
        self.values.append(ValueRecord(kernel.name_hint, outputs))

"""What a graph is made from: a model's description, a scheme and a target."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from tvm import relax

from tir_kernels.cpu.gemm_bytes import TILES

from ..config import RWKVConfig
from ..errors import UserError
from ..models import Generation, Parameter, generation_of
from ..quantization.schemes import SCHEMES, FloatForm, Scheme
from ..schema import Activations, Family
from .ops import FAMILIES
from .ops.cpu import CPUOps, StoredCPUOps
from .ops.kernels import KernelOps
from .state import StateRef
from .target import GraphTarget
from .weights import RuntimeTensor, Weights, runtime_tensors

BYTES: dict[Activations, int] = {"float32": 0, "int8": 1, "int15": 2, "int21": 3}
"""How many bytes stand for an activation of the products that read prompts; 0: a float."""


@dataclass(frozen=True)
class GraphModel:
    """``prefill_activations`` are what the matrices of the blocks read in prefill; ``as_stored`` says that the caller gives
    parameters as they lie on disk."""

    config: RWKVConfig
    scheme: Scheme
    target: GraphTarget
    prefill_activations: Activations = "float32"
    family: Family = "fused"
    as_stored: bool = False

    @cached_property
    def generation(self) -> Generation:
        return generation_of(self.config)

    @cached_property
    def parameters(self) -> list[Parameter]:
        return self.generation.parameters(self.config)

    @property
    def ops(self) -> type[KernelOps]:
        ops = FAMILIES[self.family][self.target.device]
        return StoredCPUOps if self.as_stored and ops is CPUOps else ops

    @cached_property
    def tensors(self) -> list[RuntimeTensor]:
        """Every stored tensor in the order in which the compiled functions take them."""
        return runtime_tensors(self.parameters, self.scheme, self.ops.layout_of)

    @property
    def written_in(self) -> Scheme:
        """The scheme of the parameters that the graph takes: in the plain family a pass puts what is stored in their place."""
        return self.scheme if self.family == "fused" else SCHEMES["q0f32"]

    @cached_property
    def taken(self) -> list[RuntimeTensor]:
        """``tensors`` as the graph takes them before all passes."""
        return runtime_tensors(self.parameters, self.written_in, self.ops.layout_of)

    @cached_property
    def states(self) -> dict[StateRef, tuple[tuple[int, ...], float]]:
        """Shape and initial value of every state tensor, float32, in the order in which the compiled functions take them."""
        layers, states = range(self.config.num_hidden_layers), self.generation.states(self.config)
        return {StateRef(layer, state.role): (state.shape, state.initial) for layer in layers for state in states}

    def weights(self, variables: dict[str, relax.Expr]) -> Weights:
        """``variables`` holds one Relax variable for every one of ``taken``, by its name."""
        return Weights.of(self.parameters, self.written_in, variables, self.ops.form_of)


def check_activations(
    prefill_activations: Activations, scheme: Scheme, target: GraphTarget, family: Family = "fused"
) -> None:
    """Raises UserError for integers with a scheme of floats, on a target without the instruction that makes them faster, and in
    a family that has none."""
    needed = _needed_of_integers(scheme, target, family)
    if needed and prefill_activations != "float32":
        raise UserError(f"--prefill-activations {prefill_activations} needs {needed}")


def best_activations(scheme: Scheme, target: GraphTarget, family: Family = "fused") -> Activations:
    """The fastest activations of prefill that are as exact as float32."""
    return "float32" if _needed_of_integers(scheme, target, family) else "int21"


def _needed_of_integers(scheme: Scheme, target: GraphTarget, family: Family) -> str | None:
    if family != "fused":
        return f"--family fused; the {family} one computes with floats."
    if isinstance(scheme.matrix, FloatForm):
        return f"quantized weights and {scheme.name} has none; choose one such as q4f16_1."
    if target.integer_dot not in TILES:
        return (
            "a CPU with AVX-512 VNNI and the target is none; name one with --mcpu, such as icelake-server, or leave the "
            "option out."
        )
    return None

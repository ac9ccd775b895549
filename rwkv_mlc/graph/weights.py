"""A model's parameters as a graph sees them: Relax variables in the layout of a target's kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import relax

from tir_kernels.cpu.packed import Packed
from tir_kernels.rows import RowFloat, RowGroup, Rows

from ..models import Parameter
from ..quantization.layouts import LAYOUTS
from ..quantization.schemes import FloatForm, GroupForm, Scheme
from .state import StateRef


@dataclass(frozen=True)
class RuntimeTensor:
    """One tensor that the compiled functions take: its stored name and shape, shape and dtype in memory, and the layout that
    leads from one to the other."""

    name: str
    stored_shape: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: str
    layout: str


@dataclass(frozen=True)
class MatrixWeight:
    """A matrix [N, K] (or table [V, C]) in the form in which kernels read it; ``name`` as in ``blocks.0.att.key``."""

    name: str
    form: Packed | Rows
    shape: tuple[int, int]
    tensors: tuple[relax.Expr, ...]


@dataclass(frozen=True)
class Norm:
    """What a norm multiplies and adds, [C] each; ``name`` as in ``blocks.0.ln1``."""

    name: str
    weight: relax.Expr
    bias: relax.Expr


def row_form(form: FloatForm | GroupForm) -> Rows:
    """A matrix as it is stored, read row by row."""
    if isinstance(form, FloatForm):
        return RowFloat(form.dtype)
    return RowGroup(form.bits, form.group, form.scale_dtype)


def runtime_tensors(
    parameters: list[Parameter],
    scheme: Scheme,
    layout_of: Callable[[Parameter, FloatForm | GroupForm], tuple[str, ...]],
) -> list[RuntimeTensor]:
    """Every tensor of a model in the order in which the compiled functions take them; ``layout_of`` is the family's."""
    result = []
    for parameter in parameters:
        stored = scheme.stored(parameter)
        layouts = layout_of(parameter, scheme.form(parameter.role))
        for layout, (name, (shape, dtype)) in zip(layouts, stored.items(), strict=True):
            result.append(RuntimeTensor(name, shape, LAYOUTS[layout].shape(shape), dtype, layout))
    return result


class Weights:
    """Looks parameters up by name below a prefix: ``weights.block(0).matrix("attention.key")``."""

    def __init__(
        self,
        parameters: dict[str, MatrixWeight | relax.Expr],
        sources: dict[str, str],
        prefix: str = "",
        layer: int | None = None,
    ):
        self.parameters, self.sources, self.prefix, self.layer = parameters, sources, prefix, layer

    @classmethod
    def of(
        cls,
        parameters: list[Parameter],
        scheme: Scheme,
        variables: dict[str, relax.Expr],
        form_of: Callable[[Parameter, FloatForm | GroupForm], Packed | Rows],
    ) -> Weights:
        """``variables`` holds one Relax variable for every stored tensor, by its name; ``form_of`` is the family's."""
        found = {}
        for p in parameters:
            tensors = tuple(variables[name] for name in scheme.stored(p))
            if p.role == "vector":
                (found[p.name],) = tensors
            else:
                name = p.source.removesuffix(".weight")
                found[p.name] = MatrixWeight(name, form_of(p, scheme.form(p.role)), p.shape, tensors)
        return cls(found, {p.name: p.source for p in parameters})

    def at(self, name: str) -> Weights:
        return Weights(self.parameters, self.sources, f"{self.prefix}{name}.", self.layer)

    def block(self, layer: int) -> Weights:
        """The weights of a layer, which has a state as well."""
        return Weights(self.parameters, self.sources, f"{self.prefix}model.blocks.{layer}.", layer)

    def vector(self, name: str) -> relax.Expr:
        return self.parameters[f"{self.prefix}{name}"]

    def matrix(self, name: str) -> MatrixWeight:
        return self.parameters[f"{self.prefix}{name}.weight"]

    def norm(self, name: str) -> Norm:
        source = self.sources[f"{self.prefix}{name}.weight"].removesuffix(".weight")
        return Norm(source, self.vector(f"{name}.weight"), self.vector(f"{name}.bias"))

    def state(self, role: str) -> StateRef:
        """A state of the layer."""
        assert self.layer is not None, "weights outside of all layers have no state"
        return StateRef(self.layer, role)

"""The protocol of an interface. Nothing here loads the compiler until functions are emitted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..config import RWKVConfig
from ..schema import FunctionSpec, LibraryMetadata, ParameterSpec, StateSpec

if TYPE_CHECKING:
    from tvm import relax

    from ..graph.model import GraphModel


class Interface(ABC):
    """``name`` is what a library's metadata says of itself."""

    name: str

    @abstractmethod
    def functions(self, config: RWKVConfig) -> dict[str, FunctionSpec]:
        """The functions by which a caller computes with a model of this shape."""

    @abstractmethod
    def emit(self, builder: relax.BlockBuilder, model: GraphModel) -> LibraryMetadata:
        """Add the functions of a library to the module; returns what a caller must know of it."""

    def described(
        self, model: GraphModel, functions: dict[str, FunctionSpec], values: dict[str, tuple]
    ) -> LibraryMetadata:
        """What a caller must know of functions of the interface that compute with the model."""
        return LibraryMetadata(
            interface=self.name,
            config=model.config,
            quantization=model.scheme.name,
            target=model.target.name,
            prefill_activations=model.prefill_activations,
            family=model.family,
            params=tuple(
                ParameterSpec(name=t.name, shape=t.shape, dtype=t.dtype, layout=t.layout, stored_shape=t.stored_shape)
                for t in model.tensors
            ),
            states=tuple(
                StateSpec(layer=state.layer, role=state.role, shape=shape, initial=initial)
                for state, (shape, initial) in model.states.items()
            ),
            functions=functions,
            values=values,
        )


def item(builder: relax.BlockBuilder, container: relax.Var, index: int, shape: Sequence, dtype: str) -> relax.Var:
    """A tensor of a tuple that is typed as an object: the VM would check each field of a tuple type at every call, a tenth of a
    small model's decoding; the kernels check what they are given."""
    from tvm import relax, tirx

    get = relax.ExternFunc("vm.builtin.tuple_getitem")
    args = [container, tirx.IntImm("int64", index)]
    return builder.emit(relax.op.call_pure_packed(get, *args, ty_args=relax.TensorType(list(shape), dtype)))

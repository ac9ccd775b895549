"""The protocol of an interface. Nothing here loads the compiler until functions are emitted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from ..config import RWKVConfig
from ..schema import FunctionSpec, LibraryMetadata

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

    @abstractmethod
    def float16_values(self, model: GraphModel) -> set[str]:
        """The names of the values that the library keeps in float16."""

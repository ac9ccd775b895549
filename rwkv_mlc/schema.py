"""What compiled libraries and artifacts say of themselves, as types: all that another implementation has to read.

docs/artifact.md is written from them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field

from .config import RWKVConfig
from .typed_json import Count, Extent, Schema, parse


class ParameterSpec(Schema):
    """A stored tensor as the compiled functions take it: ``shape`` and ``dtype`` in memory, after ``layout``
    (``quantization.layouts``) has permuted what the shards hold under ``name``."""

    name: str
    shape: tuple[Extent, ...]
    dtype: str
    layout: str


class StateSpec(Schema):
    """One tensor of the recurrent state, [slots, *shape], filled with ``initial`` before the first token."""

    layer: Count
    role: str
    shape: tuple[Extent, ...]
    dtype: str = "float32"
    initial: float = 0.0

    @property
    def name(self) -> str:
        return f"blocks.{self.layer}.{self.role}"


class TensorSpec(Schema):
    """An argument or a result of a function; an extent is a number or a name, which stands for the same number wherever it
    occurs in a call."""

    name: str
    shape: tuple[Extent | str, ...]
    dtype: str


class FunctionSpec(Schema):
    """A function of a library: its arguments in order. "states" and "params" stand for the tuples of all tensors of that
    kind, in the order of the metadata."""

    arguments: tuple[TensorSpec | Literal["states", "params"], ...]
    result: TensorSpec


class KernelValues(NamedTuple):
    """A kernel call of a function and the named values that it writes, by the position of the argument that holds them;
    several names lie in one argument plane by plane."""

    kernel: str
    outputs: dict[Count, str | tuple[str, ...]]


class LibraryMetadata(Schema):
    """What the function ``_metadata`` of a library returns as JSON.

    ``params`` and ``states`` are in the order of the tuples that the functions take; ``values`` holds the kernel calls of
    every function in order, none where they are merged, and is empty in libraries that do not name their values."""

    interface: str = "native"
    config: RWKVConfig = Field(alias="model_config")
    quantization: str
    target: str
    prefill_activations: Literal["float32", "int8"] = "float32"
    params: tuple[ParameterSpec, ...]
    states: tuple[StateSpec, ...] = ()
    functions: dict[str, FunctionSpec] = {}
    values: dict[str, tuple[KernelValues, ...]] = {}

    @classmethod
    def read(cls, text: str, library: Path | str = "The library") -> LibraryMetadata:
        """Libraries that do not describe their states and functions have those of the native interface, and are read with
        the help of ``rwkv_mlc.models``. Raises UserError for text that does not fit."""
        metadata = parse(cls, text, f"The metadata of {library}", "build it again")
        if metadata.functions:
            return metadata
        config = metadata.config
        return metadata.model_copy(update={"states": model_states(config), "functions": native_functions(config)})


def model_states(config: RWKVConfig) -> tuple[StateSpec, ...]:
    """The state tensors of a model, layer by layer."""
    from .models import model_module

    layers, states = range(config.num_hidden_layers), model_module(config).states(config)
    return tuple(
        StateSpec(layer=layer, role=state.role, shape=state.shape, initial=state.initial)
        for layer in layers
        for state in states
    )


def native_functions(config: RWKVConfig) -> dict[str, FunctionSpec]:
    """What the native interface computes with: T tokens of B sequences one after the other, where each sequence ends, and
    the state slot of each; logits after each sequence's last token, or at every position."""

    def function(tokens: int | str, sequences: int | str, rows: int | str) -> FunctionSpec:
        vectors = {"tokens": tokens, "segment_ends": sequences, "slots": sequences}
        inputs = (TensorSpec(name=name, shape=(extent,), dtype="int32") for name, extent in vectors.items())
        logits = TensorSpec(name="logits", shape=(1, rows, config.vocab_size), dtype="float32")
        return FunctionSpec(arguments=(*inputs, "states", "params"), result=logits)

    return {
        "prefill": function("T", "B", "B"),
        "score": function("T", "B", "T"),
        "decode": function(1, 1, 1),
        "batch_decode": function("B", "B", "B"),
    }

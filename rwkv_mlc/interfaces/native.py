"""Our own interface: the caller keeps a pool of states, whose slots every call updates in place.

``prefill``, ``score``, ``decode`` and ``batch_decode`` all take (tokens int32 [T], segment_ends int32 [B], slots int32 [B],
states, params): the tokens of B sequences one after the other, where each ends, the state slot of each, the tuple of state
tensors [S, ...] and the tuple of parameters, both in the order of the metadata. ``prefill``, ``batch_decode`` (one token a
sequence, T = B) and ``decode`` (T = B = 1) return the logits after each sequence's last token, float32 [1, B, V]; ``score``
those at every position, [1, T, V]. ``sample`` chooses tokens from logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..config import RWKVConfig
from ..graph.marks import CAPTURED, MERGED, PLANNED
from ..graph.state import StateAccess, StateRef
from ..schema import (
    CAPTURED_PREFIX,
    NATIVE,
    FunctionSpec,
    LibraryMetadata,
    TensorSpec,
)
from .interface import Interface, item

if TYPE_CHECKING:
    from tvm import relax

    from ..graph.model import GraphModel
    from ..graph.ops.kernels import KernelOps


@dataclass(frozen=True)
class Function:
    """``phase`` chooses the kernels, ``alone`` says that there is one sequence, ``every_row`` that all logits are wanted."""

    phase: Literal["prefill", "decode"]
    alone: bool = False
    every_row: bool = False


FUNCTIONS = {
    "prefill": Function("prefill"),
    "score": Function("prefill", every_row=True),
    "decode": Function("decode", alone=True),
    "batch_decode": Function("decode"),
}


class Slots(StateAccess):
    """State tensors that the caller passes, float32 [S, ...] with one slot a sequence; kernels update them in place."""

    in_place = True

    def __init__(self, tensors: dict[StateRef, relax.Expr], slots: relax.Expr):
        self.tensors, self.slots = tensors, slots

    def read(self, states: Sequence[StateRef]) -> list[relax.Expr]:
        return [self.tensors[state] for state in states]

    def write(self, states: Sequence[StateRef], tensors: Sequence[relax.Expr]) -> None:
        self.tensors.update(zip(states, tensors, strict=True))


class Native(Interface):
    name = NATIVE

    def functions(self, config: RWKVConfig) -> dict[str, FunctionSpec]:
        def spec(function: Function) -> FunctionSpec:
            sequences: int | str = 1 if function.alone else "B"
            tokens: int | str = "T" if function.phase == "prefill" else sequences
            extents = {"tokens": tokens, "segment_ends": sequences, "slots": sequences}
            inputs = (TensorSpec(name=name, shape=(extent,), dtype="int32") for name, extent in extents.items())
            rows = tokens if function.every_row else sequences
            logits = TensorSpec(name="logits", shape=(1, rows, config.vocab_size), dtype="float32")
            return FunctionSpec(arguments=(*inputs, "states", "params"), result=logits)

        return {name: spec(function) for name, function in FUNCTIONS.items()}

    def emit(self, builder: relax.BlockBuilder, model: GraphModel) -> LibraryMetadata:
        from tir_kernels.sampling import MAX_VOCAB

        values = {}
        for name in FUNCTIONS:
            ops = _emit_function(builder, name, model)
            values[name] = () if _is_merged(name, model) else tuple(ops.values)
        ops.emit_probes()
        if model.config.vocab_size <= MAX_VOCAB:
            ops.emit_sample()
        functions = self.functions(model.config)
        captured = {f"{CAPTURED_PREFIX}{name}": functions[name] for name in FUNCTIONS if _is_captured(name, model)}
        return self.described(model, functions | captured | ops.further, values)


def float16_values(model: GraphModel) -> set[str]:
    """The names of the values that a library keeps in float16."""
    from tvm import relax

    ops = _emit_function(relax.BlockBuilder(), "batch_decode", model)
    narrow = [names for value, names in ops.names.items() if value.ty.dtype == "float16"]
    return {name for names in narrow for name in ([names] if isinstance(names, str) else names or ())}


def _emit_function(builder: relax.BlockBuilder, name: str, model: GraphModel) -> KernelOps:
    from tvm import relax, tirx

    from ..graph.model import BYTES

    function, config = FUNCTIONS[name], model.config
    batch = 1 if function.alone else tirx.Var("batch", "int64")
    num_slots = tirx.Var("num_slots", "int64")
    rows = tirx.Var("rows", "int64") if function.phase == "prefill" else batch

    tokens = relax.Var("tokens", relax.TensorType([rows], "int32"))
    segment_ends = relax.Var("segment_ends", relax.TensorType([batch], "int32"))
    slots = relax.Var("slots", relax.TensorType([batch], "int32"))
    states, params = relax.Var("states", relax.ObjectType()), relax.Var("params", relax.ObjectType())

    marks = {MERGED: _is_merged(name, model), CAPTURED: _is_captured(name, model)}
    marked: dict[str, object] = {mark: True for mark, holds in marks.items() if holds}
    if name == "prefill":
        marked[PLANNED] = {rows.name: model.target.prefill_chunk}
    with builder.function(name, [tokens, segment_ends, slots, states, params], marked or None):
        with builder.dataflow():
            weights = model.weights(
                {t.name: item(builder, params, i, t.shape, t.dtype) for i, t in enumerate(model.taken)}
            )
            tensors = {
                state: item(builder, states, i, (num_slots, *shape), "float32")
                for i, (state, (shape, _)) in enumerate(model.states.items())
            }
            places = BYTES[model.prefill_activations] if name == "prefill" else 0
            access = Slots(tensors, slots)
            ops = model.ops(builder, model, function.phase, tokens, segment_ends, access, activation_bytes=places)
            x = model.generation.embed(config, ops, weights, tokens)
            x = model.generation.blocks(config, ops, weights, x)
            if not function.every_row:
                x = ops.last_rows(x)
            logits = builder.emit_output(model.generation.head(config, ops, weights, x))
        builder.emit_func_output(logits)
    if ops.marks:
        written = builder.get().get_global_var(name)
        builder.update_func(written, builder.get()[written].with_attrs(ops.marks))
    return ops


def _is_merged(function: str, model: GraphModel) -> bool:
    return FUNCTIONS[function].alone and model.ops.merges_kernels


def _is_captured(function: str, model: GraphModel) -> bool:
    return FUNCTIONS[function].alone and model.target.launch_graphs

"""A second interface, for the tests: states are given to every call and come back from it, and nothing changes.

It is what an engine with a state of its own asks for (get, compute, set), and uses the other form of every kernel that
keeps state.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import relax, tirx

from rwkv_mlc.config import RWKVConfig
from rwkv_mlc.engine.tvm_runtime import Device, tensor, to_numpy, tvm_ffi
from rwkv_mlc.graph.model import GraphModel
from rwkv_mlc.graph.state import StateAccess, StateRef
from rwkv_mlc.interfaces.interface import Interface
from rwkv_mlc.schema import FunctionSpec, LibraryMetadata, TensorSpec

PHASES = {"read": "prefill", "step": "decode"}


class GivenStates(StateAccess):
    in_place = False
    slots = None

    def __init__(self, tensors: dict[StateRef, relax.Expr]):
        self.tensors = tensors

    def read(self, states: Sequence[StateRef]) -> list[relax.Expr]:
        return [self.tensors[state] for state in states]

    def write(self, states: Sequence[StateRef], tensors: Sequence[relax.Expr]) -> None:
        self.tensors.update(zip(states, tensors, strict=True))


class Functional(Interface):
    """``read`` and ``step`` (one token a sequence) take (tokens int32 [T], segment_ends int32 [B], the states [B, ...], the
    parameters) and return the logits [1, B, V] and the new states."""

    name = "functional"

    def functions(self, config: RWKVConfig) -> dict[str, FunctionSpec]:
        inputs = [TensorSpec(name=n, shape=(extent,), dtype="int32") for n, extent in (("tokens", "T"), ("ends", "B"))]
        logits = TensorSpec(name="logits", shape=(1, "B", config.vocab_size), dtype="float32")
        return {name: FunctionSpec(arguments=(*inputs, "states", "params"), result=logits) for name in PHASES}

    def emit(self, builder: relax.BlockBuilder, model: GraphModel) -> LibraryMetadata:
        for name, phase in PHASES.items():
            _emit(builder, name, phase, model)
        return LibraryMetadata(
            interface=self.name,
            config=model.config,
            quantization=model.scheme.name,
            target=model.target.name,
            params=(),
            functions=self.functions(model.config),
        )


def _emit(builder: relax.BlockBuilder, name: str, phase: str, model: GraphModel) -> None:
    batch = tirx.Var("batch", "int64")
    rows = tirx.Var("rows", "int64") if phase == "prefill" else batch
    tokens = relax.Var("tokens", relax.TensorType([rows], "int32"))
    ends = relax.Var("segment_ends", relax.TensorType([batch], "int32"))
    states = {
        state: relax.Var(f"state_{i}", relax.TensorType([batch, *shape], "float32"))
        for i, (state, (shape, _)) in enumerate(model.states.items())
    }
    params = {t.name: relax.Var(f"param_{i}", relax.TensorType(t.shape, t.dtype)) for i, t in enumerate(model.taken)}
    with builder.function(name, [tokens, ends, *states.values(), *params.values()]):
        with builder.dataflow():
            access = GivenStates(dict(states))
            ops = model.ops(builder, model, phase, tokens, ends, access)
            weights = model.weights(params)
            x = model.generation.embed(model.config, ops, weights, tokens)
            x = ops.last_rows(model.generation.blocks(model.config, ops, weights, x))
            logits = model.generation.head(model.config, ops, weights, x)
            output = builder.emit_output(relax.Tuple([logits, *access.tensors.values()]))
        builder.emit_func_output(output)


def call(
    machine: tvm_ffi.Module,
    name: str,
    sequences: Sequence[Sequence[int]],
    states: Sequence[np.ndarray],
    params: Sequence[tvm_ffi.Tensor],
    device: Device,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Logits [B, V] and the new states. The given ones must come back bit for bit."""
    tokens = np.concatenate(sequences).astype(np.int32)
    ends = np.cumsum([len(s) for s in sequences], dtype=np.int32)
    given = [tensor(state, device) for state in states]
    logits, *updated = machine[name](tensor(tokens, device), tensor(ends, device), *given, *params)
    assert all(np.array_equal(to_numpy(now), then) for now, then in zip(given, states, strict=True))
    return to_numpy(logits)[0], [to_numpy(state) for state in updated]

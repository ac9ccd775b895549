"""mlc_llm's interface: the caller keeps a ``RNNState`` of TVM's runtime, which every call reads and writes.

``embed`` takes (tokens int32 [n], params) and returns rows float32 [n, C]; ``prefill`` [1, n, C] of one sequence, ``decode``
[1, 1, C], ``batch_prefill`` [1, T, C] with the position of the last row of each sequence, int32 [B], ``batch_decode`` [B, 1, C]
and ``batch_verify`` [1, n, C] of one sequence take (rows, [positions,] state, params) and return (logits, state): float32
[1, 1, V] after the last row, [1, B, V], [B, 1, V], and [1, n, V] at every row. Parameters come as they lie on disk. The engine
calls ``vm.builtin.kv_state_begin_forward`` before and ``kv_state_end_forward`` after each.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..config import RWKVConfig
from ..graph.marks import PLANNED
from ..graph.state import StateAccess, StateRef
from ..schema import (
    MLC,
    FunctionSpec,
    LibraryMetadata,
    MlcMetadata,
    MlcParameter,
    TensorSpec,
)
from .interface import Interface, item

if TYPE_CHECKING:
    from tvm import relax

    from ..graph.model import GraphModel

PREFIX = f"{MLC}_"  # of the functions until compiler.passes.mlc
MAX_BATCH = 64
PREFILL_CHUNK = 4096
"""Tokens; the engine reads every prompt at once, together with all others that wait."""


@dataclass(frozen=True)
class Function:
    """``phase`` chooses the kernels. ``sequences``: all rows are of "one", of "each" its last is given, or a row is of a
    sequence of its own. ``every_row`` says that all logits are wanted."""

    phase: Literal["prefill", "decode"]
    sequences: Literal["one", "each", "rows"]
    every_row: bool = False


FUNCTIONS = {
    "prefill": Function("prefill", "one"),
    "decode": Function("decode", "one"),
    "batch_prefill": Function("prefill", "each"),
    "batch_decode": Function("decode", "rows"),
    "batch_verify": Function("prefill", "one", every_row=True),
}


class RNNState(StateAccess):
    """States [B, ...] of the sequences of a call, copied out of the runtime's storage and back into it."""

    in_place = False
    slots = None

    def __init__(self, builder: relax.BlockBuilder, model: GraphModel, batch: object, state: relax.Expr):
        self.builder, self.model, self.batch, self.state = builder, model, batch, state
        roles = list(dict.fromkeys(role for _, role in model.states))
        self.ids = {role: i for i, role in enumerate(roles)}

    def read(self, states: Sequence[StateRef]) -> list[relax.Expr]:
        from tvm import relax

        def get(state: StateRef) -> relax.Expr:
            kind = relax.TensorType([self.batch, *self.model.states[state][0]], "float32")
            return self.builder.emit(
                relax.op.call_dps_packed("vm.builtin.rnn_state_get", [self.state, *self._place(state)], kind)
            )

        return [get(state) for state in states]

    def write(self, states: Sequence[StateRef], tensors: Sequence[relax.Expr]) -> None:
        from tvm import relax

        put = relax.ExternFunc("vm.builtin.rnn_state_set")
        for state, tensor in zip(states, tensors, strict=True):
            args = [self.state, *self._place(state), tensor]
            self.state = self.builder.emit(relax.op.call_pure_packed(put, *args, ty_args=relax.ObjectType()))

    def _place(self, state: StateRef) -> list:
        from tvm import tirx

        return [tirx.IntImm("int64", state.layer), tirx.IntImm("int64", self.ids[state.role])]


class Mlc(Interface):
    name = MLC

    def functions(self, config: RWKVConfig) -> dict[str, FunctionSpec]:
        def spec(function: Function) -> FunctionSpec:
            rows: int | str = "T" if function.phase == "prefill" else {"one": 1, "rows": "B"}[function.sequences]
            leading = (rows, 1) if function.sequences == "rows" else (1, rows)
            given = [TensorSpec(name="rows", shape=(*leading, config.hidden_size), dtype="float32")]
            if function.sequences == "each":
                given.append(TensorSpec(name="positions", shape=("B",), dtype="int32"))
            last = leading if function.every_row or function.sequences == "rows" else (1, "B" if len(given) > 1 else 1)
            logits = TensorSpec(name="logits", shape=(*last, config.vocab_size), dtype="float32")
            return FunctionSpec(arguments=(*given, "states", "params"), result=logits)

        return {PREFIX + name: spec(function) for name, function in FUNCTIONS.items()}

    def emit(self, builder: relax.BlockBuilder, model: GraphModel) -> LibraryMetadata:
        values = {}
        for name in FUNCTIONS:
            ops = _emit_function(builder, name, model)
            values[PREFIX + name] = tuple(ops.values)
        _emit_embed(builder, model)
        _emit_create(builder, model)
        _emit_choosing(builder, model)
        return self.described(model, self.functions(model.config), values)


def described_for_engine(model: GraphModel, own: LibraryMetadata) -> MlcMetadata:
    """What the library says to mlc_llm's engine, but for the memory that its functions take."""
    return MlcMetadata(
        model_type=model.generation.model_type,
        quantization=model.scheme.name,
        prefill_chunk_size=PREFILL_CHUNK,
        max_batch_size=MAX_BATCH,
        active_vocab_size=model.config.vocab_size,
        params=tuple(MlcParameter(name=t.name, shape=t.stored_shape, dtype=t.dtype) for t in model.tensors),
        memory_usage={},
        own=own,
    )


def _kernels(model: GraphModel, module: str):
    """A module of the target's kind of kernels."""
    return importlib.import_module(f"tir_kernels.{model.target.device}.{module}")


def _weights(builder: relax.BlockBuilder, model: GraphModel, params: relax.Var):
    return model.weights({t.name: item(builder, params, i, t.shape, t.dtype) for i, t in enumerate(model.taken)})


def _reshaped(builder: relax.BlockBuilder, tensor: relax.Expr, shape: Sequence) -> relax.Var:
    from tvm import relax

    reshape, dtype = relax.ExternFunc("vm.builtin.reshape"), str(tensor.ty.dtype.dtype)
    kind = relax.TensorType(list(shape), dtype)
    return builder.emit(relax.op.call_pure_packed(reshape, tensor, relax.ShapeExpr(list(shape)), ty_args=kind))


def _emit_function(builder: relax.BlockBuilder, name: str, model: GraphModel):
    from tvm import relax, tirx

    from tir_kernels.segment_ends import end_of_all, ends_of_last, ends_of_rows

    function, config, device = FUNCTIONS[name], model.config, _kernels(model, "elements")
    by_row = function.sequences == "rows"
    rows = tirx.Var("rows", "int64") if function.phase == "prefill" or by_row else 1
    batch = {"one": 1, "each": tirx.Var("batch", "int64"), "rows": rows}[function.sequences]
    leading = [rows, 1] if by_row else [1, rows]
    given = relax.Var("rows", relax.TensorType([*leading, config.hidden_size], "float32"))
    positions = relax.Var("positions", relax.TensorType([batch], "int32"))
    state, params = relax.Var("state", relax.ObjectType()), relax.Var("params", relax.ObjectType())
    inputs = [given, *([positions] if function.sequences == "each" else []), state, params]
    marks = {PLANNED: {rows.name: model.target.prefill_chunk}} if function.phase == "prefill" else None

    def emit_kernel(kernel: tirx.PrimFunc, args: list, extent: object) -> relax.Var:
        function = builder.add_func(kernel, kernel.attrs["kernel"])
        return builder.emit(relax.call_tir(function, args, relax.TensorType([extent], "int32")))

    with builder.function(PREFIX + name, inputs, marks):
        with builder.dataflow():
            x = _reshaped(builder, given, [1, rows, config.hidden_size]) if by_row else given
            each = emit_kernel(ends_of_rows(config.hidden_size, device), [x], rows)
            match function.sequences:
                case "rows":
                    ends = each
                case "one":
                    ends = emit_kernel(end_of_all(config.hidden_size, device), [x], 1)
                case "each":
                    ends = emit_kernel(ends_of_last(device), [positions], batch)
            access = RNNState(builder, model, batch, state)
            ops = model.ops(builder, model, function.phase, each, ends, access)
            weights = _weights(builder, model, params)
            x = model.generation.blocks(config, ops, weights, x)
            x = x if function.every_row else ops.last_rows(x)
            logits = model.generation.head(config, ops, weights, x)
            logits = _reshaped(builder, logits, [rows, 1, config.vocab_size]) if by_row else logits
            result = builder.emit_output(relax.Tuple([logits, access.state]))
        builder.emit_func_output(result)
    return ops


def _emit_embed(builder: relax.BlockBuilder, model: GraphModel) -> None:
    from tvm import relax, tirx

    rows = tirx.Var("rows", "int64")
    tokens = relax.Var("tokens", relax.TensorType([rows], "int32"))
    params = relax.Var("params", relax.ObjectType())
    with builder.function(PREFIX + "embed", [tokens, params]):
        with builder.dataflow():
            ops = model.ops(builder, model, "decode", tokens, tokens, RNNState(builder, model, rows, params))
            x = model.generation.embed(model.config, ops, _weights(builder, model, params), tokens)
            result = builder.emit_output(_reshaped(builder, x, [rows, model.config.hidden_size]))
        builder.emit_func_output(result)


def _emit_create(builder: relax.BlockBuilder, model: GraphModel) -> None:
    """``create_rnn_state`` (Shape [sequences], Shape [history]) -> the state, whose ids are the roles of a layer in order."""
    from tvm import relax, tirx

    from tir_kernels.rnn_state import state_get, state_set

    device, layers = _kernels(model, "elements"), model.config.num_hidden_layers
    states = [model.states[ref] for ref in model.states if ref.layer == 0]
    sequences, history = tirx.Var("sequences", "int64"), tirx.Var("history", "int64")
    inputs = [
        relax.Var(name, relax.ShapeType([extent]))
        for name, extent in (("sequences_", sequences), ("history_", history))
    ]
    with builder.function(PREFIX + "create_rnn_state", inputs):
        gets = [builder.add_func(state_get(tuple(shape), device), "rnn_state_get") for shape, _ in states]
        sets = [builder.add_func(state_set(tuple(shape), device), "rnn_state_set") for shape, _ in states]
        initial = [relax.const(np.full(shape, value, np.float32)) for shape, value in states]
        create = relax.ExternFunc("vm.builtin.rnn_state_create")
        args = [
            tirx.IntImm("int64", layers),
            sequences,
            history,
            relax.Tuple(gets),
            relax.Tuple(sets),
            relax.Tuple(initial),
        ]
        builder.emit_func_output(builder.emit(relax.op.call_pure_packed(create, *args, ty_args=relax.ObjectType())))


def _emit_choosing(builder: relax.BlockBuilder, model: GraphModel) -> None:
    """What the engine does with logits. On GPUs it has a sampler of its own, which asks for four functions more."""
    from tvm import relax, tirx

    from tir_kernels.logit_processors import bitmask, logit_bias, penalties
    from tir_kernels.take_probs import take_probs

    vocab, device = model.config.vocab_size, _kernels(model, "elements")
    b, n, s, m = (tirx.Var(name, "int64") for name in ("batch", "entries", "sequences", "places"))

    def floats(*shape) -> relax.TensorType:
        return relax.TensorType(list(shape), "float32")

    def ints(*shape) -> relax.TensorType:
        return relax.TensorType(list(shape), "int32")

    def add(name: str, kernel: tirx.PrimFunc, inputs: Sequence, results: Sequence = ()) -> None:
        """A function of one kernel, which changes its first input where it has no results."""
        args = [relax.Var(f"input_{i}", kind) for i, kind in enumerate(inputs)]
        with builder.function(PREFIX + name, args):
            function = builder.add_func(kernel, f"{name}_alone")
            if results:
                call = relax.call_tir(function, args, list(results) if len(results) > 1 else results[0])
            else:
                call = relax.op.call_tir_inplace(function, args, [0], [args[0].ty])
            builder.emit_func_output(builder.emit(call))

    with builder.function(PREFIX + "alloc_embedding_tensor", []):
        shape = relax.ShapeExpr([PREFILL_CHUNK, model.config.hidden_size])
        builder.emit_func_output(builder.emit(relax.op.builtin.alloc_tensor(shape, "float32", 0)))
    softmax = _kernels(model, "softmax").softmax
    add("softmax_with_temperature", softmax(vocab), [floats(b, 1, vocab), floats(b)], [floats(b, 1, vocab)])
    add("apply_logit_bias_inplace", logit_bias(vocab, device), [floats(b, vocab), ints(n), ints(n), floats(n)])
    add(
        "apply_penalty_inplace",
        penalties(vocab, device),
        [floats(b, vocab), ints(s), ints(n), ints(n), ints(n), floats(s, 3)],
    )
    add("apply_bitmask_inplace", bitmask(vocab, device), [floats(b, vocab), ints(s), ints(b, -(-vocab // 32))])
    if model.target.device == "cpu":
        return
    sorted_tiles, merged_tiles, multinomial, top_p_draw = (
        getattr(_kernels(model, name), name) for name in ("sorted_tiles", "merged_tiles", "multinomial", "top_p_draw")
    )
    order = [floats(b, vocab), ints(b, vocab)]
    probs = relax.Var("probs", floats(b, vocab))
    with builder.function(PREFIX + "argsort_probs", [probs]):
        halves = [builder.add_func(half(vocab), half.__name__) for half in (sorted_tiles, merged_tiles)]
        tiles = builder.emit(relax.call_tir(halves[0], [probs], order))
        tiles = [builder.emit(relax.TupleGetItem(tiles, i)) for i in range(2)]
        builder.emit_func_output(builder.emit(relax.call_tir(halves[1], tiles, order)))
    add("multinomial_from_uniform", multinomial(vocab), [floats(b, vocab), floats(n), ints(n)], [ints(n)])
    add("sample_with_top_p", top_p_draw(vocab), [*order, floats(n), ints(n), floats(b)], [ints(n)])
    taken = [floats(n), floats(m), ints(m)]
    add("sampler_take_probs", take_probs(vocab, device), [*order, ints(n), ints(n), ints(m)], taken)

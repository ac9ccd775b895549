"""The arguments of every kernel that is a generation's recurrence, in the one order in which graphs give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .builder import arg, size

Phase = Literal["prefill", "decode"]
Shape = tuple[int, ...]


class RecurrenceArgs(NamedTuple):
    """``inputs`` and ``outs`` are [1, T, C], ``vectors`` the parameters. With ``in_place``, ``states`` are [S, ...], int32 [B]
    ``slots`` say which of them each sequence has, and ``out_states`` are the same buffers; otherwise both are [B, ...]
    and there are no ``slots``. ``ends`` is int32 [B], where the rows of each sequence end; absent where every sequence
    has one row."""

    batch: tirx.Var
    inputs: list[tirx.Buffer]
    vectors: list[tirx.Buffer]
    states: list[tirx.Buffer]
    ends: tirx.Buffer | None
    slots: tirx.Buffer | None
    outs: list[tirx.Buffer]
    out_states: list[tirx.Buffer]


def recurrence_args(
    channels: int,
    inputs: Sequence[str],
    vectors: Mapping[str, Shape],
    states: Mapping[str, Shape],
    phase: Phase,
    in_place: bool,
    dtype: str = "float32",
    outputs: Sequence[str] = ("out",),
) -> RecurrenceArgs:
    """Declare (inputs, vectors, states, segment_ends, slots -> outputs of ``dtype``, out_states) inside a kernel, which gets
    the attribute "recurrence": shapes of vectors, and of states without their first axis, by name; the new states of
    "state" are "out_state", of "state_a" "out_a"."""
    T.func_attr({"recurrence": True})
    batch, rows, num_slots = size("batch"), size("rows"), size("num_slots")
    if phase == "decode":
        rows = batch
    declared_inputs = [arg(name, (1, rows, channels)) for name in inputs]
    declared_vectors = [arg(name, shape) for name, shape in vectors.items()]
    declared_states = [arg(name, (num_slots if in_place else batch, *shape)) for name, shape in states.items()]
    ends = arg("segment_ends", (batch,), "int32") if phase == "prefill" else None
    slots = arg("slots", (batch,), "int32") if in_place else None
    outs = [arg(name, (1, rows, channels), dtype) for name in outputs]
    new = declared_states
    if not in_place:
        names = {name: f"out_{name.removeprefix('state_')}" for name in states}
        new = [arg(names[name], (batch, *shape)) for name, shape in states.items()]
    return RecurrenceArgs(batch, declared_inputs, declared_vectors, declared_states, ends, slots, outs, new)

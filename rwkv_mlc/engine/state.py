"""The recurrent state of sequences on a device, and the logits that it was left with."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from .cuda_graph import DecodeGraph
from .sampler import Counts
from .tvm_runtime import Tensor, copy_row, duplicate, duplicate_row, tensor, to_numpy, tvm_ffi, view


class Logits(NamedTuple):
    """A row of the logits of a call, float32 [1, rows, V], where the library left them."""

    call: Tensor
    row: int

    def array(self) -> np.ndarray:
        """Float32 [V], not a copy on the CPU."""
        return view(self.call)[0, self.row]

    def alone(self) -> Logits:
        """The same in a tensor of their own."""
        return Logits(tensor(self.array()[None, None], self.call.device), 0) if self.call.shape[1] > 1 else self


class Ending(NamedTuple):
    """What comes after the last token that a slot has read: the logits, and where that was one of an answer, the counts of its
    tokens."""

    logits: Logits
    counts: Counts = Counts()


@dataclass
class State:
    """Recurrent state of ``slots`` sequences: one tensor a layer and role, float32 [slots, ...], in the order in which the
    library takes them. Calls update it in place; ``copy`` gives an independent one.

    ``last`` has the ending of every slot that has read a token, None where nobody kept it, and ``lengths`` how many it has
    read."""

    tensors: list[Tensor]
    last: dict[int, Ending | None] = field(default_factory=dict, repr=False)
    lengths: dict[int, int] = field(default_factory=dict, repr=False)
    graph: DecodeGraph | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.packed = tvm_ffi.convert(self.tensors)

    @property
    def slots(self) -> int:
        return int(self.tensors[0].shape[0])

    @cached_property
    def layout(self) -> tuple[tuple[tuple[int, ...], str], ...]:
        """Shape of a slot and dtype of each tensor."""
        return tuple((tuple(map(int, t.shape[1:])), str(t.dtype)) for t in self.tensors)

    def copy(self) -> State:
        return State([duplicate(t) for t in self.tensors], dict(self.last), dict(self.lengths))

    def copy_of_slot(self, slot: int) -> State:
        """What a slot holds, as a state of one."""
        last = {0: self.last[slot]} if slot in self.last else {}
        return State([duplicate_row(t, slot) for t in self.tensors], last, {0: self.lengths.get(slot, 0)})

    def copy_slot(self, slot: int, target: State, target_slot: int) -> None:
        """Put what a slot holds into a slot of ``target``, a state of the same model on the same device; may be this one."""
        for source, copied in zip(self.tensors, target.tensors, strict=True):
            copy_row(source, slot, copied, target_slot)
        target.last.pop(target_slot, None)
        if slot in self.last:
            target.last[target_slot] = self.last[slot]
        target.lengths[target_slot] = self.lengths.get(slot, 0)

    def arrays(self) -> list[np.ndarray]:
        """Copies of the tensors, in order."""
        return [to_numpy(t) for t in self.tensors]

"""Slots for the recurrent states of several sequences, side by side in the tensors that one call takes."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from ..errors import UserError
from .runner import Runner
from .state import State


class StatePool:
    """The slots of one ``state``, whose tensors are float32 [slots, ...]; those that are not ``free`` are the caller's. A slot
    belongs to whoever allocated it until it is freed; what the others hold never changes by that."""

    def __init__(self, runner: Runner, state: State, free: Iterable[int] = ()):
        self.runner, self.state, self._free = runner, state, set(free)

    @classmethod
    def of_slots(cls, runner: Runner, slots: int) -> StatePool:
        """A pool of so many free ones. Raises UserError for fewer than one."""
        if slots < 1:
            raise UserError(f"A pool needs at least one slot, not {slots}.")
        return cls(runner, runner.new_state(slots), range(slots))

    @property
    def slots(self) -> int:
        return self.state.slots

    @property
    def free_slots(self) -> int:
        """How many can be allocated."""
        return len(self._free)

    def allocate(self) -> int:
        """A slot with the state before the first token. Raises UserError where none is free, as all that allocate do."""
        return self.load(self.fresh)

    def free(self, slot: int) -> None:
        """Give a slot back. Raises UserError for one that is not in use."""
        self._check(slot)
        self._free.add(slot)
        self.state.last.pop(slot, None)
        self.state.lengths.pop(slot, None)

    def copy(self, slot: int) -> int:
        """Another slot with the same state, from where the two go their own ways."""
        self._check(slot)
        copied = self._take()
        self.state.copy_slot(slot, self.state, copied)
        return copied

    def save(self, slot: int) -> State:
        """What a slot holds, as a state of its own; ``Engine.save_state`` writes one to a file."""
        self._check(slot)
        return self.state.copy_of_slot(slot)

    def load(self, state: State) -> int:
        """A slot that holds what the first slot of ``state`` does."""
        slot = self._take()
        state.copy_slot(0, self.state, slot)
        return slot

    @cached_property
    def fresh(self) -> State:
        """The state before the first token, not to be changed."""
        return self.runner.new_state()

    def _take(self) -> int:
        if not self._free:
            raise UserError(f"All {self.slots} state slots are in use; free one, or make a pool of more.")
        slot = min(self._free)
        self._free.remove(slot)
        return slot

    def _check(self, slot: int) -> None:
        if slot not in range(self.slots) or slot in self._free:
            raise UserError(f"The state slot {slot} is not in use.")

"""How the operations of a graph reach the recurrent state; an interface decides it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tvm import relax


class StateRef(NamedTuple):
    """One tensor of the state."""

    layer: int
    role: str


class StateAccess(ABC):
    """``in_place`` says in which of their two forms kernels are wanted: those that update the slots of a pool, [S, ...], which
    they find by ``slots`` int32 [B]; or those that take the states of the call's sequences, [B, ...], and give new ones,
    where there are no ``slots``."""

    in_place: bool
    slots: relax.Expr | None

    @abstractmethod
    def read(self, states: Sequence[StateRef]) -> list[relax.Expr]:
        """The tensors to give to a kernel."""

    @abstractmethod
    def write(self, states: Sequence[StateRef], tensors: Sequence[relax.Expr]) -> None:
        """Take what the kernel has made of them."""

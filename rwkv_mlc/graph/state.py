"""How a graph reaches the recurrent state: ``get`` and ``set`` by layer and role."""

from __future__ import annotations

from tvm import relax


class ExplicitState:
    """State tensors that the caller passes, float32 [S, ...] with one slot a sequence; kernels update them in place."""

    def __init__(self, tensors: dict[tuple[int, str], relax.Expr]):
        self.tensors = tensors

    def get(self, layer: int, role: str) -> relax.Expr:
        return self.tensors[layer, role]

    def set(self, layer: int, role: str, value: relax.Expr) -> None:
        self.tensors[layer, role] = value

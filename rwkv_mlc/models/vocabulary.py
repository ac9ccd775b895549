"""The language in which a generation writes its graph. ``graph`` gives the words their meaning, one class a family of targets.

What stands for a tensor is the graph's own and opaque here. Activations are [1, T, C] with the tokens of all sequences of a
call one after the other, float32 but for what matrices read on some targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias

Expr: TypeAlias = Any
"""A tensor of the graph."""

Activation: TypeAlias = str | None
"""What is applied to each output of a matrix: "sigmoid", "silu", "squared_relu", "tanh" or nothing, and in ``expand``
"exp_minus_exp" and "bounded_decay", the decays of RWKV-6 and RWKV-7."""

Unmixed: TypeAlias = Sequence[Literal["now", "before"]]
"""What a token shift gives beside what it mixes: the norm of the token itself, and that and the one before it."""


class Weights(Protocol):
    """The parameters below a name, as kernels read them; ``block`` and what is below it belong to a layer, which has states."""

    def at(self, name: str) -> Weights: ...

    def block(self, layer: int) -> Weights: ...

    def vector(self, name: str) -> Expr: ...

    def matrix(self, name: str) -> Any: ...

    def norm(self, name: str) -> Any: ...

    def state(self, role: str) -> Any: ...


class Ops(Protocol):
    """Operations. ``norm``, ``matrix``, ``table`` and ``state`` are what ``Weights`` gives."""

    phase: Any
    """``prefill`` for many tokens, ``decode`` for one of every sequence."""

    def embedding(self, tokens: Expr, table: Any) -> Expr:
        """Ids int32 [T] -> [1, T, C]."""

    def layer_norm(self, x: Expr, norm: Any) -> Expr:
        """[1, T, C] -> [1, T, C]."""

    def norm_shift_mix(
        self, x: Expr, norm: Any, mixes: dict[str, Expr], state: Any, unmixed: Unmixed = ()
    ) -> Mapping[str, Any]:
        """The layer norm of x, mixed with that of the token before: a mixed input for each target of ``mixes``, and what
        ``unmixed`` names, ("now",) or ("now", "before"). The state keeps the last token's for the next call."""

    def linears(self, products: Sequence[tuple[Any, Any, Activation]]) -> list[Expr]:
        """Products of (mixed input, matrix, activation), [1, T, N] each; their inputs come from one ``norm_shift_mix``."""

    def linear(self, x: Expr, matrix: Any, gate: Expr | None = None, residual: Expr | None = None) -> Expr:
        """gate * (W x) + residual, [1, T, N]."""

    def expand(
        self, products: Mapping[str, tuple[Expr, Any, Expr | None, Activation]], gate: Expr | None = None
    ) -> list[Expr]:
        """The second halves of low-rank pairs, by their roles: activation(W h + bias) of (h, matrix, bias, activation),
        [1, T, N] each; the only one of them times the gate."""

    def expand_mix(self, mixed: Mapping[str, Any], h: Expr, matrix: Any, mixes: dict[str, Expr]) -> Mapping[str, Any]:
        """Mixed inputs whose mixes depend on the token: now + (before - now) * (mix + W_j h_j) for each target j, of "now" and
        "before" among ``mixed``. h [1, T, n R] are the h_j side by side, and the matrix [n Cp, R] the W_j below each other,
        each padded to the Cp rows of a whole number of ``models.block.ROWS``."""

    def token_matrix(self, x: Expr, table: Any, role: str) -> Expr:
        """x [1, T, n] times the matrix [n, n] that the table [V, n n] has of each token."""

    def recurrence(self, inputs: list[Expr], states: list[Any], *roles: str) -> list[Expr]:
        """What the generation's recurrent kernel makes of inputs and states, [1, T, C] for each of the roles; the states go
        on to the next call."""

    def group_norm(
        self, x: Expr, norm: Any, groups: int, epsilon: float, gate: Expr | None = None, added: Expr | None = None
    ) -> Expr:
        """[1, T, C] -> [1, T, C], in groups of the channels; plus what is added, times the gate."""

    def halve(self, x: Expr) -> Expr:
        """x / 2."""

    def last_rows(self, x: Expr) -> Expr:
        """The last row of every sequence: [1, T, C] -> [1, B, C]."""

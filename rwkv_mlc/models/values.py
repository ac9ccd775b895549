"""Named values: the roles of a block, what each is computed from, and the way from one to the values before it.

A role is named below its block: ``att.key`` of ``blocks.3.att.key``. ``x`` stands for the residual stream that enters the
block; states are those that the call before has left.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LARGEST_FLOAT16 = float(np.finfo(np.float16).max)
"""Beyond it a value has to be kept in float32."""

LAST_ROW = ("ln_out", "logits")
"""The values that every call gives for its last token only."""


@dataclass(frozen=True)
class Role:
    """``rescaled`` says that the value is halved with the residual stream (``RWKVConfig.rescale_every``)."""

    name: str
    operation: str
    inputs: tuple[str, ...]
    states: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    rescaled: bool = False

    def placed(self, layer: int, x: str) -> Value:
        """The role in a layer whose block ``x`` enters."""

        def whole(names: Sequence[str]) -> tuple[str, ...]:
            return tuple(
                x if name == "x" else name if name.startswith("blocks.") else f"blocks.{layer}.{name}" for name in names
            )

        (name,) = whole((self.name,))
        read = whole(self.inputs), whole(self.states), whole(self.parameters)
        return Value(name, self.operation, *read, rescaled=self.rescaled)


@dataclass(frozen=True)
class Value:
    """One value of a call, with whole names: ``inputs`` are values of the same call, ``states`` of the call before, and
    ``parameters`` go by their names in the checkpoint."""

    name: str
    operation: str
    inputs: tuple[str, ...]
    states: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    rescaled: bool = False


def norm_role(name: str, source: str, operation: str = "layer norm") -> Role:
    return Role(name, operation, (source,), parameters=(f"{name}.weight", f"{name}.bias"))


def product_role(name: str, source: str, rescaled: bool = False) -> Role:
    return Role(name, "matrix product", (source,), parameters=(f"{name}.weight",), rescaled=rescaled)


def place(name: str) -> tuple[int | None, str]:
    """Layer and role of a value: (3, "att.key"), (None, "logits")."""
    parts = name.split(".", 2)
    return (int(parts[1]), parts[2]) if parts[0] == "blocks" else (None, name)


def nearest(
    graph: Mapping[str, Value], known: Collection[str], call: str, value: Value
) -> tuple[dict[str, Value], list[Value]]:
    """The nearest values before ``value`` that are ``known``, with their calls and with what reads them, and the values on the
    way that are not."""
    before = _before(call)
    found: dict[str, Value] = {}
    between: list[Value] = []
    open_values = [value]
    while open_values:
        current = open_values.pop(0)
        found |= {name: current for state in current.states if (name := f"{before}/{state}") in known}
        for source in current.inputs:
            name = f"{call}/{source}"
            if name in known:
                found[name] = current
            elif graph[source] not in between:
                between.append(graph[source])
                open_values.append(graph[source])
    return found, between


def _before(call: str) -> str | None:
    """The call whose states a call reads."""
    phase, _, number = call.partition(".")
    if phase == "prefill":
        return None
    return f"decode.{int(number) - 1}" if int(number) else "prefill"

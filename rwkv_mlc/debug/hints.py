"""Known patterns of a wrong value: each hint is a guess that was tried on the numbers and gives them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..models import generation_of
from ..models.values import Value, place
from .dump import Dump
from .matrices import matrix_guesses
from .measure import relative
from .weights import StoredWeights


@dataclass(frozen=True)
class Case:
    """The value in question: ``a`` has it wrong, ``b`` right."""

    a: Dump
    b: Dump
    call: str
    value: str
    graph: Mapping[str, Value]
    limit: float

    @cached_property
    def found(self) -> np.ndarray:
        return self.a.tensors[f"{self.call}/{self.value}"].astype(np.float64)

    @cached_property
    def expected(self) -> np.ndarray:
        return self.b.tensors[f"{self.call}/{self.value}"].astype(np.float64)

    @property
    def role(self) -> str:
        return place(self.value)[1]

    @property
    def operation(self) -> str:
        return self.graph[self.value].operation

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.graph[self.value].inputs

    def right(self, value: str) -> np.ndarray | None:
        """B's value of this name in the same call."""
        return self.b.tensors.get(f"{self.call}/{value}")

    def beside(self, role: str) -> np.ndarray | None:
        """B's value of another role of the same block, or of a whole name."""
        return self.right(role if role.startswith("blocks.") else f"{self.value.removesuffix(self.role)}{role}")

    def explained(self, guess: np.ndarray) -> bool:
        """Whether ``guess`` is what A holds."""
        error = relative(self.found, self.expected)
        return guess.shape == self.found.shape and relative(self.found, guess) <= max(self.limit, min(error, 1.0) / 50)

    def best(self, guesses: Iterable[tuple[str, np.ndarray]]) -> Iterator[str]:
        """The text of the guess that is nearest to what A holds, if it is that."""
        explained = [(relative(self.found, guess), text) for text, guess in guesses if self.explained(guess)]
        yield from (text for _, text in sorted(explained)[:1])


def hints(case: Case, weights: StoredWeights | None = None) -> Iterator[str]:
    """``weights`` are those that A was computed with, where they are at hand to be tried."""
    if not np.isfinite(case.found).all() or case.found.shape != case.expected.shape:
        return
    for pattern in PATTERNS:
        yield from pattern(case)
    if weights is not None:
        yield from case.best(matrix_guesses(case.graph[case.value], case.graph, case.right, weights))


def transposed(case: Case) -> Iterator[str]:
    if case.found.ndim >= 2 and case.explained(case.expected.swapaxes(-1, -2)):
        yield "it agrees after a transpose of the last two axes: the layout of the state, or of what wrote it"


def scaled(case: Case) -> Iterator[str]:
    factor = float((case.found * case.expected).sum() / (case.expected**2).sum())
    if not factor or not case.explained(factor * case.expected):
        return
    power = np.log2(abs(factor))
    if abs(power - round(power)) < 1e-3 and round(power):
        yield (
            f"it agrees up to a factor of 2^{round(power)}: a rescale needs both halves, the activations and the weights of "
            f"{' and '.join(_rescaled_products(case.graph))}"
        )
    elif abs(power) > 1e-3 or factor < 0:
        yield f"it is {factor:.4g} times what it should be"


def tokens(case: Case) -> Iterator[str]:
    rows = len(case.b.header.tokens)
    if case.call != "prefill" or rows < 2 or len(case.found) != rows or ".state." in case.value:
        return
    scale = np.sqrt((case.expected**2).mean())
    errors = np.sqrt(((case.found - case.expected) ** 2).mean(axis=1)) / scale
    wrong = np.flatnonzero(errors > case.limit).tolist()
    borders = case.a.header.borders
    if wrong == [0]:
        yield "it differs for the first token only: the initial state, or what the token shift takes before the first token"
    elif wrong and set(wrong) <= {0, *borders}:
        yield f"it agrees for every token but those after a chunk border ({_listed(wrong)}): a stale token shift"
    elif wrong and wrong[0] in borders:
        yield f"it agrees up to the chunk border before token {wrong[0]}: the state that is carried over"
    elif wrong and wrong[0] == 1:
        yield "it agrees for the first token only: the token shift or the state"
    elif wrong and wrong[0] == 2:
        yield "it agrees for the first two tokens only: the decay, which the state meets at the third"


def phases(case: Case) -> Iterator[str]:
    name = f"prefill/{case.value}"
    if case.call == "prefill" or name not in case.a.tensors or name not in case.b.tensors:
        return
    if relative(case.a.tensors[name], case.b.tensors[name]) > case.limit:
        return
    text = "it agrees in prefill and not in decode: "
    if case.role == "ln0":
        yield f"{text}ln0 may be applied twice, or to an embedding that has it already"
    else:
        yield f"{text}the kernels of single tokens, or the layout in which prefill leaves the state and decode expects it"


def swapped(case: Case) -> Iterator[str]:
    """The value is what another value of the same block should be."""
    prefix, state = case.value.removesuffix(case.role), ".state." in case.value
    for name in case.graph:
        if name != case.value and name.startswith(prefix or "-") and (".state." in name) == state:
            other = case.b.tensors.get(f"{case.call}/{name}")
            if other is not None and case.explained(other):
                yield f"it is what {name} should be: two of them are swapped, or one is skipped"


def mirrored(case: Case) -> Iterator[str]:
    """mu x + (1 - mu) previous the wrong way round."""
    norm = case.right(case.inputs[0]) if case.operation == "token shift and mix" else None
    if norm is None or case.call != "prefill":
        return
    previous = np.concatenate([np.zeros_like(norm[:1]), norm[:-1]])
    if case.explained(norm + previous - case.expected):
        yield "mu and 1 - mu are swapped in the mix"
    elif case.explained(norm):
        yield "the token shift takes the token itself"


def stale(case: Case) -> Iterator[str]:
    """A state that a call has not changed."""
    _, role = place(case.value)
    if not role.startswith("state."):
        return
    config = case.b.header.config
    layout = {s.role: s for s in generation_of(config).states(config)}
    initial = layout[role.removeprefix("state.")].initial
    if np.array_equal(case.found, np.full_like(case.found, np.float32(initial))):
        yield "it is still the initial state"
    for call in case.b.header.calls[: case.b.header.calls.index(case.call)]:
        if case.explained(case.b.tensors[f"{call}/{case.value}"]):
            yield f"it is still that of {call}"


def mistaken(case: Case) -> Iterator[str]:
    """What the generation itself knows."""
    if case.call != "prefill":
        return
    config = case.b.header.config
    for text, rows in generation_of(config).mistakes(config, case.role, case.beside):
        if relative(case.found[: len(rows)], rows) <= case.limit:
            yield text


def normalized(case: Case) -> Iterator[str]:
    """Group norms of another kind. Weight and bias are found from B's own norm, channel by channel."""
    normed_value, *rest = case.inputs if case.operation == "gate" else (case.value,)
    if case.graph[normed_value].operation != "group norm":
        return
    wkv, ln_x = case.right(case.graph[normed_value].inputs[0]), case.right(normed_value)
    others = [value for name in rest if (value := case.right(name)) is not None]
    if wkv is None or ln_x is None or len(others) < len(rest) or len(wkv) < 2:
        return
    gate = others[0] if others else np.float64(1.0)
    added = others[1] if others[1:] else np.float64(0.0)
    config = case.b.header.config
    heads = wkv.astype(np.float64).reshape(len(wkv), config.num_heads, config.head_size)

    def normed(epsilon: float, *axes: int) -> np.ndarray:
        mean, variance = heads.mean(axes, keepdims=True), heads.var(axes, keepdims=True)
        return ((heads - mean) / np.sqrt(variance + epsilon)).reshape(wkv.shape)

    own, epsilon = normed(config.group_norm_epsilon, 2), config.group_norm_epsilon
    centered = own - own.mean(0)
    weight = (centered * ln_x).sum(0) / np.maximum((centered**2).sum(0), 1e-30)
    bias = (ln_x - weight * own).mean(0)
    kinds = {f"an epsilon of {e:g} instead of {epsilon:g}": normed(e, 2) for e in (1e-5, 64e-5, 1e-6, 1e-3, 0.0)}
    kinds |= {
        "all heads together as one group": normed(epsilon, 1, 2),
        "the statistics over the tokens as well": normed(epsilon, 0, 2),
        "the statistics across the heads": normed(epsilon, 1),
    }
    guesses = (
        (f"it is what a group norm with {text} gives", (n * weight + bias + added) * gate) for text, n in kinds.items()
    )
    yield from case.best(guesses)


def _rescaled_products(graph: Mapping[str, Value]) -> list[str]:
    """The roles of the matrices that are halved with the residual stream."""
    products = (value for value in graph.values() if value.rescaled and value.operation == "matrix product")
    return list(dict.fromkeys(place(value.name)[1] for value in products))


def _listed(rows: list[int]) -> str:
    return f"token{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows))}"


PATTERNS = (transposed, scaled, tokens, phases, swapped, mirrored, stale, mistaken, normalized)

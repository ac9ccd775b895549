"""Choosing the next token from logits, by rules that another implementation can follow: docs/generation.md."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np

from ..errors import UserError
from ..escaping import quoted

_RANGES = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "repetition_penalty": (1.0, 10.0),
    "penalty_decay": (0.0, 1.0),
}
UNIT = 2**32  # parts of 1 in which ``top_p`` and random numbers are taken
HEAVIEST = np.float32(2**36)  # the weight of the likeliest token; weights are integers
_INTEGER_RANGES = {"top_k": (0, 2**31 - 1), "max_tokens": (1, 2**31 - 1), "seed": (0, 2**64 - 1)}


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen and when to stop. Raises UserError for a value outside its range.

    ``temperature`` 0 takes the likeliest token (otherwise 0.01 to 100). ``top_p`` 1 and ``top_k`` 0 keep all tokens.
    ``presence_penalty`` and ``frequency_penalty`` (-2 to 2) are subtracted from the logit of a generated token, the
    second times its count, which ``penalty_decay`` shrinks at every token (ChatRWKV: 0.996). ``repetition_penalty``
    (1 to 10, 1 is off) divides positive and multiplies negative logits of generated tokens. ``seed`` None draws one.
    ``max_tokens`` bounds the answer, ``stop`` holds the strings that end it.
    """

    temperature: float = 1.0
    top_p: float = 0.85
    top_k: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    penalty_decay: float = 0.996
    seed: int | None = None
    max_tokens: int = 256
    stop: Sequence[str] = ()

    def __post_init__(self) -> None:
        if isinstance(self.stop, list):
            object.__setattr__(self, "stop", tuple(self.stop))
        for name, (low, high) in (_RANGES | _INTEGER_RANGES).items():
            value = getattr(self, name)
            if name == "seed" and value is None:
                continue
            kind, kind_name = (Real, "a number") if name in _RANGES else (Integral, "an integer")
            fits = isinstance(value, kind) and not isinstance(value, bool)
            if not fits or not low <= value <= high:
                raise UserError(f"{name} must be {kind_name} from {low} to {high}, not {quoted(value)}.")
        if 0 < self.temperature < 0.01:
            raise UserError(
                f"temperature must be 0 (the likeliest token) or at least 0.01, not {quoted(self.temperature)}."
            )
        if not isinstance(self.stop, tuple) or not all(isinstance(text, str) and _is_text(text) for text in self.stop):
            raise UserError(f"stop must be a tuple or a list of non-empty strings, not {quoted(self.stop)}.")


class SplitMix64:
    """Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators" (2014); the seed is the first state."""

    def __init__(self, seed: int):
        self._state = seed

    def next(self) -> int:
        """A 64-bit integer."""
        self._state = (self._state + 0x9E3779B97F4A7C15) % 2**64
        z = self._state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    def uniform(self) -> float:
        """A multiple of 2**-53 in [0, 1), from the upper 53 bits of one integer."""
        return (self.next() >> 11) * 2.0**-53


class Counts:
    """How often tokens were chosen, shrunk at every token since: ``ids`` int32 [n] and ``counts`` float32 [n]."""

    def __init__(self, ids: np.ndarray | None = None, counts: np.ndarray | None = None):
        """Of these ids, no two the same; of none where not given."""
        self.ids = np.empty(0, np.int32) if ids is None else ids.copy()
        self.counts = np.empty(0, np.float32) if counts is None else counts.copy()
        self._places = {token: place for place, token in enumerate(self.ids.tolist())}

    def add(self, token: int, decay: float) -> None:
        self.counts *= np.float32(decay)
        if token not in self._places:
            self._places[token] = len(self.ids)
            self.ids, self.counts = np.append(self.ids, np.int32(token)), np.append(self.counts, np.float32(0))
        self.counts[self._places[token]] += 1

    def after(self, tokens: Sequence[int], decay: float) -> Counts:
        """Those when these were chosen, too."""
        later = Counts(self.ids, self.counts)
        for token in tokens:
            later.add(token, decay)
        return later


class Sampler:
    """Chooses the tokens of one answer; it counts them for the penalties. ``seed`` is the one in use.

    ``sample`` follows the rules by itself; ``choose`` has them followed on a device, from ``draw`` and ``penalties``."""

    def __init__(self, params: SamplingParams, valid_ids: np.ndarray, counts: Counts = Counts()):
        """``valid_ids``, bool [V], is False for ids never to be chosen (``Tokenizer.valid_ids``); ``counts`` are of what the
        answer goes on from."""
        self.params = params
        self.seed = secrets.randbits(64) if params.seed is None else int(params.seed)
        self.inverse_temperature = np.float32(1 / params.temperature if params.temperature else 0)
        self.top_p = max(round(params.top_p * UNIT), 1)
        self.penalizes = params.repetition_penalty != 1 or bool(params.presence_penalty or params.frequency_penalty)
        self._random = SplitMix64(self.seed)
        self._invalid = np.flatnonzero(~valid_ids)
        self._counts = counts.after((), params.penalty_decay)
        self._scores = np.empty(len(valid_ids), dtype=np.float32)

    def sample(self, logits: np.ndarray) -> int:
        """The next token for logits [V] (read as float32, not changed). Raises UserError where the model failed to give
        finite ones."""
        np.copyto(self._scores, logits.reshape(-1), casting="same_kind")
        self._scores[self._invalid] = -np.inf
        if self.penalizes:
            self._penalize()
        token = int(np.argmax(self._scores))
        if not math.isfinite(self._scores[token]):
            raise UserError(
                f"The model's logits are not finite (token {token}: {self._scores[token]}), as happens when 16-bit "
                "activations overflow; build it with a quantization of 32-bit activations, such as q4f32_1 or q0f32."
            )
        if self.params.temperature:
            token = self._choose(self._scores[token], self.draw())
        self.count(token)
        return token

    def draw(self) -> int:
        """The upper 32 bits of the next random number; 0, and none is taken, with temperature 0."""
        return self._random.next() >> 32 if self.params.temperature else 0

    def penalties(self) -> tuple[np.ndarray, np.ndarray]:
        """The tokens chosen so far, int32 [n], and what is subtracted from the logit of each, float32 [n]."""
        frequency = self._counts.counts * np.float32(self.params.frequency_penalty)
        return self._counts.ids, np.float32(self.params.presence_penalty) + frequency

    def count(self, token: int) -> None:
        """Note that a token was chosen."""
        if self.penalizes:
            self._counts.add(token, self.params.penalty_decay)

    def _penalize(self) -> None:
        ids, amounts = self.penalties()
        scores, repetition = self._scores[ids], np.float32(self.params.repetition_penalty)
        self._scores[ids] = np.where(scores > 0, scores / repetition, scores * repetition) - amounts

    def _choose(self, best: np.float32, drawn: int) -> int:
        weights = self._scores  # in its place
        with np.errstate(over="ignore"):
            np.subtract(best, self._scores, out=weights)
            np.multiply(weights, -self.inverse_temperature, out=weights)
        np.floor(np.multiply(np.exp(weights, out=weights), HEAVIEST, out=weights), out=weights)
        ids = np.arange(len(weights))
        if 0 < self.params.top_k < len(weights):
            limit = np.partition(weights, -self.params.top_k)[-self.params.top_k]
            ids = _heaviest(weights, limit, self.params.top_k)
        if self.top_p < UNIT:
            ids = ids[self._nucleus(weights[ids])]
        cumulative = np.cumsum(weights[ids], dtype=np.float64)
        return int(ids[np.searchsorted(cumulative, drawn * int(cumulative[-1]) // UNIT, side="right")])

    def _nucleus(self, weights: np.ndarray) -> np.ndarray:
        """Rising indices of the fewest and heaviest weights that come up to ``top_p`` of all.

        Only those heavy enough are sorted: the others together are less than half of what ``top_p`` leaves out."""
        total = int(weights.sum(dtype=np.float64))
        heavy = np.sort(weights[weights >= 0.5 * (1 - self.top_p / UNIT) * total / len(weights)])[::-1]
        count = int(np.searchsorted(np.cumsum(heavy, dtype=np.float64), -(-self.top_p * total // UNIT))) + 1
        return _heaviest(weights, heavy[count - 1], count)


def _heaviest(weights: np.ndarray, limit: np.float32, count: int) -> np.ndarray:
    """Rising indices of the ``count`` largest weights, whose smallest is ``limit``; of equal ones, the first."""
    candidates = np.flatnonzero(weights >= limit)
    ties = candidates[weights[candidates] == limit]
    surplus = len(candidates) - count
    return np.setdiff1d(candidates, ties[len(ties) - surplus :], assume_unique=True)


def _is_text(text: str) -> bool:
    try:
        return bool(text.encode("utf-8"))
    except UnicodeEncodeError:
        return False

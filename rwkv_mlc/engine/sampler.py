"""Choosing the next token from logits, by rules that another implementation can follow: docs/generation.md."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np

from ..errors import UserError

_RANGES = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "repetition_penalty": (1.0, 10.0),
    "penalty_decay": (0.0, 1.0),
}
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
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, (low, high) in (_RANGES | _INTEGER_RANGES).items():
            value = getattr(self, name)
            if name == "seed" and value is None:
                continue
            kind, kind_name = (Real, "a number") if name in _RANGES else (Integral, "an integer")
            fits = isinstance(value, kind) and not isinstance(value, bool)
            if not fits or not low <= value <= high:
                raise UserError(f"{name} must be {kind_name} from {low} to {high}, not {value!r}.")
        if 0 < self.temperature < 0.01:
            raise UserError(f"temperature must be 0 (the likeliest token) or at least 0.01, not {self.temperature!r}.")
        if not isinstance(self.stop, tuple) or not all(isinstance(text, str) and _is_text(text) for text in self.stop):
            raise UserError(f"stop must be a tuple of non-empty strings, not {self.stop!r}.")


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


class Sampler:
    """Chooses the tokens of one answer; it counts them for the penalties. ``seed`` is the one in use."""

    def __init__(self, params: SamplingParams, valid_ids: np.ndarray):
        """``valid_ids``, bool [V], is False for ids never to be chosen (``Tokenizer.valid_ids``)."""
        self.params = params
        self.seed = secrets.randbits(64) if params.seed is None else int(params.seed)
        self._random = SplitMix64(self.seed)
        self._invalid = np.flatnonzero(~valid_ids)
        self._counts = np.zeros(len(valid_ids), dtype=np.float32)
        self._generated = np.zeros(len(valid_ids), dtype=bool)
        self._scores, self._distances, self._weights = np.empty((3, len(valid_ids)), dtype=np.float32)

    def sample(self, logits: np.ndarray) -> int:
        """The next token for logits [V] (read as float32, not changed). Raises UserError where the model failed to give
        finite ones."""
        params = self.params
        np.copyto(self._scores, logits.reshape(-1), casting="same_kind")
        self._scores[self._invalid] = -np.inf
        if params.repetition_penalty != 1 or params.presence_penalty or params.frequency_penalty:
            self._penalize(np.flatnonzero(self._generated))
        token = int(np.argmax(self._scores))
        if not math.isfinite(self._scores[token]):
            raise UserError(
                f"The model's logits are not finite (token {token}: {self._scores[token]}), as happens when 16-bit "
                "activations overflow; build it with a quantization of 32-bit activations, such as q4f32_1 or q0f32."
            )
        if params.temperature:
            token = self._draw(self._scores[token])
        self._counts *= np.float32(params.penalty_decay)
        self._counts[token] += 1
        self._generated[token] = True
        return token

    def _penalize(self, ids: np.ndarray) -> None:
        scores = self._scores[ids]
        repetition = np.float32(self.params.repetition_penalty)
        scores = np.where(scores > 0, scores / repetition, scores * repetition)
        frequency = self._counts[ids] * np.float32(self.params.frequency_penalty)
        self._scores[ids] = scores - (np.float32(self.params.presence_penalty) + frequency)

    def _draw(self, best: np.float32) -> int:
        with np.errstate(over="ignore"):
            distances = np.subtract(best, self._scores, out=self._distances)
        weights = self._weigh(distances, out=self._weights)
        ids = None
        if 0 < self.params.top_k < len(distances):
            limit = np.partition(distances, self.params.top_k - 1)[self.params.top_k - 1]
            ids = _closest(distances, limit, self.params.top_k)
            distances, weights = distances[ids], weights[ids]
        if self.params.top_p < 1:
            nucleus = self._nucleus(distances, weights)
            ids = nucleus if ids is None else ids[nucleus]
            weights = weights[nucleus]
        cumulative = np.cumsum(weights.astype(np.float64))
        target = min(self._random.uniform() * cumulative[-1], np.nextafter(cumulative[-1], 0))
        index = int(np.searchsorted(cumulative, target, side="right"))
        return index if ids is None else int(ids[index])

    def _weigh(self, distances: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        with np.errstate(over="ignore"):
            weights = np.divide(distances, np.float32(-self.params.temperature), out=out)
        return np.exp(weights, out=out)

    def _nucleus(self, distances: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Rising indices of the fewest closest tokens that weigh ``top_p`` of all.

        Only tokens heavy enough are sorted: the others together weigh less than half of what ``top_p`` leaves out."""
        top_p = self.params.top_p
        total = weights.sum(dtype=np.float64)
        closest = np.sort(distances[weights >= 0.5 * (1 - top_p) * total / len(weights)])
        cumulative = np.cumsum(self._weigh(closest).astype(np.float64))
        count = min(int(np.searchsorted(cumulative, top_p * total)) + 1, len(closest))
        return _closest(distances, closest[count - 1], count)


def _closest(distances: np.ndarray, limit: np.float32, count: int) -> np.ndarray:
    """Rising indices of the ``count`` smallest distances, whose largest is ``limit``; of equal ones, the first."""
    candidates = np.flatnonzero(distances <= limit)
    ties = candidates[distances[candidates] == limit]
    surplus = len(candidates) - count
    return np.setdiff1d(candidates, ties[len(ties) - surplus :], assume_unique=True)


def _is_text(text: str) -> bool:
    try:
        return bool(text.encode("utf-8"))
    except UnicodeEncodeError:
        return False

"""The next tokens of several sequences in one call of the library, so that of the logits nothing leaves the device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import UserError
from .runner import Runner
from .sampler import UNIT, Sampler
from .state import Logits
from .tvm_runtime import Tensor, lend, tensor, view

FUNCTION = "sample"
REQUEST = np.dtype(
    [
        ("row", np.int32),
        ("inverse_temperature", np.float32),
        ("top_k", np.int32),
        ("top_p", np.uint32),
        ("drawn", np.uint32),
        ("repetition_penalty", np.float32),
        ("first", np.int32),
        ("end", np.int32),
    ]
)
"""A row of what ``sample`` calls requests; docs/artifact.md describes it."""
NOBODY, NOTHING = np.zeros(1, np.int32), np.zeros(1, np.float32)  # a first row of penalties: no tensor is empty


class Chooser:
    """Follows the rules of docs/generation.md with the function ``sample`` of a library, and by itself with a library that
    was built before it had one. ``valid_ids``, bool [V], is False for ids never to be chosen."""

    def __init__(self, runner: Runner, valid_ids: np.ndarray):
        self.runner = runner
        self.function = runner.functions.get(FUNCTION)
        padding = np.flatnonzero(~valid_ids).astype(np.int32)
        self.padding = tensor(padding if len(padding) else np.full(1, -1, np.int32), runner.device)

    def __call__(self, samplers: Sequence[Sampler], logits: Sequence[Logits]) -> list[int | UserError]:
        """The next token of each, which its sampler counts; an error where the model failed to give finite logits."""
        by_call: dict[Tensor, list[int]] = {}
        for i, (call, _) in enumerate(logits):
            by_call.setdefault(call, []).append(i)
        chosen: dict[int, int | UserError] = {}
        for call, places in by_call.items():
            found = self._choose(call, [samplers[i] for i in places], [logits[i].row for i in places])
            chosen.update(zip(places, found, strict=True))
        return [chosen[i] for i in range(len(samplers))]

    def _choose(self, call: Tensor, samplers: list[Sampler], rows: list[int]) -> list[int | UserError]:
        if self.function is None:
            arrays = view(call)[0]
            return [_sample(sampler, arrays[row]) for sampler, row in zip(samplers, rows)]
        device = self.runner.device
        inputs = requests_of(samplers, rows)  # alive until the tokens are there
        with self.runner.calling:
            self.runner.check_process()
            self.runner.memory.make_room(FUNCTION, 0, len(samplers))
            tokens = view(self.function(call, *(lend(array, device) for array in inputs), self.padding)).tolist()
        return [
            _count(sampler, token) if token >= 0 else _sample(sampler, view(call)[0, row])
            for sampler, token, row in zip(samplers, tokens, rows)
        ]


def requests_of(samplers: Sequence[Sampler], rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The arguments ``requests`` int32 [B, 8] and ``penalties`` int32 [N, 2] of ``sample``, for these rows of the logits;
    takes a random number of each sampler that draws."""
    ids, lost = [NOBODY], [NOTHING]
    requests, end = [], 1
    for sampler, row in zip(samplers, rows, strict=True):
        first = end
        if sampler.penalizes:
            chosen, amounts = sampler.penalties()
            ids.append(chosen)
            lost.append(amounts)
            end += len(chosen)
        top_p, repetition = sampler.top_p % UNIT, sampler.params.repetition_penalty
        requests.append(
            (row, sampler.inverse_temperature, sampler.params.top_k, top_p, sampler.draw(), repetition, first, end)
        )
    penalties = np.stack([np.concatenate(ids), np.concatenate(lost).view(np.int32)], axis=1)
    return np.array(requests, REQUEST).view(np.int32).reshape(len(requests), -1), penalties


def _count(sampler: Sampler, token: int) -> int:
    sampler.count(token)
    return token


def _sample(sampler: Sampler, logits: np.ndarray) -> int | UserError:
    try:
        return sampler.sample(logits)
    except UserError as error:
        return error

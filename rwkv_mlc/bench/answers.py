"""How fast answers are written: the whole step of a scheduler, with choosing the token and everything around the kernels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ..engine import sequence as sequences
from ..engine.engine import Engine
from .timing import Timing, is_enough, seconds_of

ENDLESS = 2**31 - 1  # tokens


def time_answers(engine: Engine, prompt: Sequence[int], batch: int, min_steps: int) -> dict:
    """Steps in which ``batch`` sequences go on from a prompt, with the artifact's sampling settings and no end; the keys are
    those of docs/benchmarks.md."""
    scheduler = engine.scheduler(batch)
    for seed in range(batch):
        params = dataclasses.replace(engine.defaults, max_tokens=ENDLESS, seed=seed, stop=())
        answer = sequences.Sequence(prompt, params, engine.tokenizer, engine.valid_ids, end_ids=frozenset())
        scheduler.add(answer)
    while any(not sequence.last or sequence.read <= len(prompt) for sequence in scheduler.sequences):
        scheduler.step()
    before = dataclasses.replace(engine.stats)
    seconds: list[float] = []
    while not is_enough(seconds, min_steps):
        seconds.append(seconds_of(scheduler.step))
    timing, steps = Timing.summary(seconds), len(seconds)
    choice = (engine.stats.choice_seconds - before.choice_seconds) / steps
    call = (engine.stats.decode_seconds - before.decode_seconds) / steps - choice
    return {
        "batch": batch,
        "runs": steps,
        "tokens_per_second": timing.rate(batch),
        "call_seconds": call,
        "choice_seconds": choice,
        "other_seconds": sum(seconds) / steps - call - choice,
    }

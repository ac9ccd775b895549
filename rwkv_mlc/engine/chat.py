"""A conversation: the prompt template, the state between turns, and what of an answer is shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .engine import Answer, Engine
from .sampler import SamplingParams
from .state import State


class Chat:
    """Turns of a conversation with a model; the state holds all that was said.

    ``params`` are the sampling settings of the next answer, with the template's stop strings; assign to change them.
    ``answer`` is the last ``Answer``, while it runs and after it."""

    def __init__(self, engine: Engine, params: SamplingParams | None = None):
        self.engine = engine
        self.params = params or chat_params(engine)
        self.answer: Answer | None = None
        self.reset()

    def reset(self) -> None:
        """Forget the conversation; the system prompt is read again."""
        state = self.engine.new_state()
        self._read(self.engine.template.system_prompt().encode("utf-8"), state)
        self.state = state

    def send(self, text: str) -> Iterator[str]:
        """Yield the answer to a message as it becomes certain.

        Closing the iterator stops the answer; what was said until then counts as the whole of it. A message whose
        reading fails counts as never sent. Raises UserError for text that the vocabulary cannot spell."""
        before, template = self.state.copy(), self.engine.template
        try:
            answer = Answer(self.engine, template.user_turn(text), self.params, self.state, template.after_answer)
        except BaseException:
            self.state = before
            raise
        self.answer = answer
        try:
            yield from answer
        finally:
            answer.settle()

    def displayed(self, pieces: Iterable[str]) -> Iterator[str]:
        """An answer as it is shown: without the space after ``Assistant:``, which the model writes itself."""
        started = not self.engine.template.roles["assistant"]
        for piece in pieces:
            piece = piece if started else piece.lstrip(" ")
            started = started or bool(piece)
            yield piece

    def save(self, path: Path | str) -> None:
        """Write the conversation's state to a file."""
        self.engine.save_state(self.state, path)

    def load(self, path: Path | str) -> None:
        """Go on from a saved state. Raises UserError, and changes nothing, for a state of another model."""
        self.state = self.engine.load_state(path)

    def _read(self, data: bytes, state: State) -> None:
        if data:
            self.engine.prefill(self.engine.tokenizer.encode(data), state)


def chat_params(engine: Engine, **settings: Any) -> SamplingParams:
    """The model's defaults with ``settings``; the template's stop strings come before those of ``settings``. Raises UserError
    for a value outside its range."""
    stop = dict.fromkeys((*engine.template.stop_str, *settings.get("stop", ())))
    return dataclasses.replace(engine.defaults, **{**settings, "stop": tuple(stop)})

"""A conversation: the prompt template, the state between turns, and what of an answer is shown."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from .engine import Answer, Engine
from .sampler import SamplingParams
from .state import State
from .thoughts import Thought
from .tools import ToolCall, calls_in


class Chat:
    """Turns of a conversation with a model; the state holds all that was said, and nothing that was thought.

    ``params`` are the sampling settings of the next answer, with the template's stop strings, and ``think`` says how much the
    model is to think before it: a mode of the template, None for its own; assign to change them. ``tools`` are the functions
    that the model may call, in JSON's types: what ``reset`` offers it. ``answer`` is the last ``Answer``, while it runs and
    after it."""

    def __init__(
        self,
        engine: Engine,
        params: SamplingParams | None = None,
        think: str | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ):
        """Raises UserError for a mode or for tools that the template has not."""
        self.engine = engine
        self.params = params or engine.chat_params()
        self.think, self.tools = think, tools
        self.answer: Answer | None = None
        self._forced = False  # to begin with the mark of a call, which is in the prompt then
        self._sent: tuple[str, bool] | None = None
        self._before: State | None = None
        self.state: State
        self.reset()

    @property
    def think(self) -> str | None:
        return self._think

    @think.setter
    def think(self, name: str | None) -> None:
        self._mode, self._think = self.engine.template.think_mode(name), name

    @property
    def tools(self) -> Sequence[Mapping[str, Any]]:
        """The functions that the model may call. Others are offered from the next ``reset`` on; setting them raises UserError
        for a template without tools."""
        return self._tools

    @tools.setter
    def tools(self, tools: Sequence[Mapping[str, Any]]) -> None:
        if tools:
            self.engine.template.tools()
        self._tools = tools

    def reset(self) -> None:
        """Forget the conversation; the system prompt is read again."""
        self._before = self._sent = None
        state = self.engine.new_state()
        self._read(self.engine.template.system_prompt(self.tools).encode("utf-8"), state)
        self._go_on_from(state)

    def send(self, text: str, call: bool = False) -> Generator[str]:
        """Yield the answer to a message as it becomes certain, the thoughts before it as pieces of the type ``Thought``. With
        ``call`` it is a call of one of the ``tools``, without thoughts, of which the opening mark is not yielded.

        Closing the iterator stops the answer; what was said until then counts as the whole of it. A message whose
        reading fails counts as never sent. Raises UserError for text that the vocabulary cannot spell."""
        template = self.engine.template
        prompt = template.call_turn(text) if call else template.user_turn(text, self._mode)
        thinking = None if call else template.thinking_turn(text, self._mode)
        self._before = self._sent = None  # the former is of the size of the state, as the next one
        self._before, self._sent = self.state.copy(), (text, call)
        try:
            answer = Answer(self.engine, prompt, self.params, self.state, template.after_answer, thinking)
        except BaseException:
            self.state, self._before = self._before, None
            raise
        self.answer, self._forced = answer, call
        try:
            yield from answer
        finally:
            answer.settle()

    def retry(self) -> Generator[str]:
        """The same for the last message once more, with the settings of now; its earlier answer counts as never given. Raises
        UserError where nothing was said since the conversation began or was loaded."""
        if self._sent is None:
            raise UserError("There is no message to be answered once more; send one.")
        self.answer = None  # which has a state
        if self._before is not None:
            self.state = self._before
        return self.send(*self._sent)

    def send_result(self, result: Any) -> Generator[str]:
        """The same for what a function gave that the model called: a text, or data of JSON's types."""
        text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
        return self.send(self.engine.template.tools().result.replace("{result}", text))

    @property
    def calls(self) -> list[ToolCall]:
        """The functions that the model calls in its last answer."""
        form = self.engine.template.tool_use
        if self.answer is None or form is None:
            return []
        return calls_in((form.call_begin if self._forced else "") + self.answer.text, form)

    @property
    def length(self) -> int:
        """How many tokens the conversation has, of which the model's texts in training had ``config.context_length``."""
        return self.state.lengths.get(0, 0)

    def displayed(self, pieces: Iterable[str]) -> Iterator[str]:
        """An answer as it is shown: its thoughts between their tags, one that has to be a call with the mark of it, and without
        the space after ``Assistant:``, which the model writes itself."""
        started, thinking = not self.engine.template.roles["assistant"], False
        for number, piece in enumerate(pieces):
            if self._forced and number == 0:
                started = True
                yield self.engine.template.tools().call_begin
            if isinstance(piece, Thought) != thinking and (tags := self.engine.template.think):
                thinking = not thinking
                yield Thought(f"{tags.begin}\n" if thinking else f"\n{tags.end}\n")
            if thinking:
                yield piece
                continue
            piece = piece if started else piece.lstrip(" ")
            started = started or bool(piece)
            yield piece

    def save(self, path: Path | str) -> None:
        """Write the conversation's state to a file."""
        self.engine.save_state(self.state, path)

    def load(self, path: Path | str) -> None:
        """Go on from a saved state. Raises UserError, and changes nothing, for a state of another model."""
        self._go_on_from(self.engine.load_state(path))

    def _go_on_from(self, state: State) -> None:
        self.state, self._before, self._sent = state, None, None

    def _read(self, data: bytes, state: State) -> None:
        if data:
            self.engine.prefill(self.engine.tokenizer.encode(data), state)

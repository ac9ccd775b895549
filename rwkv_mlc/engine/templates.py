"""Prompt templates: mlc_llm's ``conv_template`` (conversation_protocol.py) as data, rendered for a recurrent model.

The state remembers, so a chat is fed piece by piece: the system prompt once, then a user turn, the answer as it is
generated, and what closes the answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Literal

from ..data_files import config_path
from ..errors import UserError
from ..escaping import quoted, shortened
from ..schema import Conversation, ThinkMode, ToolUse
from ..typed_json import read
from .thoughts import ThinkingTurn


class Template(Conversation):
    """A conversation template, rendered."""

    @classmethod
    def of(cls, conversation: Conversation) -> Template:
        return cls(**dict(conversation))

    def system_prompt(self, tools: Sequence[Any] = ()) -> str:
        """What is fed before the first user turn: the system message with the functions that the model may call, and the
        opening exchange. Raises UserError for functions where the template offers none."""
        text = self._folded(self.system_message)
        if tools:
            offer = self.tools().offer.replace("{tools}", json.dumps(tools, ensure_ascii=False))
            text = f"{text}\n{offer}" if text else offer
        system = self.system_template.replace("{system_message}", text) if text else ""
        return system + "".join(self._message(role, content) for role, content in self.messages)

    def user_turn(self, text: str, mode: ThinkMode | None = None) -> str:
        """What is fed for one message of the user, up to where the model goes on; it never ends in a space. ``mode`` says how
        much to think first; None is how later turns have the message."""
        opening = self.roles["assistant"] + self.role_empty_sep
        if mode is None:
            return self._message("user", self._folded(text)) + opening
        return self._message("user", self._folded(text) + mode.user_suffix) + opening + mode.opening

    def thinking_turn(self, text: str, mode: ThinkMode | None) -> ThinkingTurn | None:
        """How the answer to a message begins with thoughts, and what later turns have of both; None without a mode."""
        if self.think is None or mode is None:
            return None
        return ThinkingTurn(self.think, mode.opening, self.user_turn(text), self.told)

    def call_turn(self, text: str) -> str:
        """The same up to the call of a function, with which the answer is to begin. Raises UserError where the template has no
        form for functions."""
        return self.user_turn(text) + self._before_answer + self.tools().call_begin

    def think_mode(self, name: str | None, option: str = "think=") -> ThinkMode | None:
        """The mode of this name, the template's own for None; None where models of the template do not think first. Raises
        UserError for a name that the template does not have; ``option`` is what the user has written before it."""
        if self.think is None:
            if name is not None:
                raise UserError(
                    f"The model's template, {shortened(self.name)}, has no think mode; leave out {option}{shortened(name)}, or "
                    "build it with the template of a model that thinks (--template)."
                )
            return None
        name = self.think.default if name is None else name
        if name not in self.think.modes:
            raise UserError(f"{option.rstrip('= ')} must be one of {', '.join(self.think.modes)}, not {quoted(name)}.")
        return self.think.modes[name]

    def tools(self) -> ToolUse:
        """Raises UserError where the template has no form for functions."""
        if self.tool_use is None:
            raise UserError(f"The model's template, {shortened(self.name)}, has no form for tools; leave them out.")
        return self.tool_use

    def after_answer(self, answer: bytes) -> bytes:
        """What is fed after an answer: the separator, but for its longest beginning that the answer's bytes end with, so that
        the state has read both exactly once."""
        separator = self.seps[-1].encode("utf-8")
        begun = next(n for n in range(len(separator), -1, -1) if answer.endswith(separator[:n]))
        return separator[begun:]

    def told(self, answer: str) -> bytes:
        """An answer, without its thoughts, and what closes it, as later turns have them after ``user_turn``."""
        text = (self._before_answer + answer if answer else "").encode("utf-8")
        return text + self.after_answer(text)

    @property
    def _before_answer(self) -> str:
        """What of ``role_content_sep`` a turn leaves to the model."""
        return self.role_content_sep.removeprefix(self.role_empty_sep)

    def _folded(self, text: str) -> str:
        """Where the separator is white space, it must not occur in a message: that is stripped of ASCII white space, its line
        ends become newlines, and blank lines vanish."""
        if not self.seps[0].isspace():
            return text
        text = text.replace("\r\n", "\n").replace("\r", "\n").strip(" \t\n\v\f")
        return re.sub(r"\n(?:[ \t\v\f]*\n)+", "\n", text)

    def _message(self, role: Literal["user", "assistant"], content: str) -> str:
        text = self.role_templates[role].replace(f"{{{role}_message}}", content)
        return self.roles[role] + self.role_content_sep + text + self.seps[0 if role == "user" else -1]


def load_template(name: str) -> Template:
    """A template of ``configs/templates`` by its name. Raises UserError for another, with the known names, and for a file with
    unknown keys."""
    return read(Template, config_path("templates", name), "correct it", extra="forbid")

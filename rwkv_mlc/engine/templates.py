"""Prompt templates: mlc_llm's ``conv_template`` (conversation_protocol.py) as data, rendered for a recurrent model.

The state remembers, so a chat is fed piece by piece: the system prompt once, then a user turn, the answer as it is
generated, and what closes the answer.
"""

from __future__ import annotations

import re
from typing import Literal

from ..data_files import config_path
from ..schema import Conversation
from ..typed_json import read


class Template(Conversation):
    """A conversation template, rendered."""

    @classmethod
    def of(cls, conversation: Conversation) -> Template:
        return cls(**dict(conversation))

    def system_prompt(self) -> str:
        """What is fed before the first user turn: the system message and the opening exchange."""
        system = self.system_template.replace("{system_message}", self.system_message)
        return system + "".join(self._message(role, content) for role, content in self.messages)

    def user_turn(self, text: str) -> str:
        """What is fed for one message of the user, up to where the model goes on; it never ends in a space.

        Where the separator is white space, it must not occur in the text: the text is stripped of ASCII white space,
        its line ends become newlines, and blank lines vanish."""
        if self.seps[0].isspace():
            text = text.replace("\r\n", "\n").replace("\r", "\n").strip(" \t\n\v\f")
            text = re.sub(r"\n(?:[ \t\v\f]*\n)+", "\n", text)
        return self._message("user", text) + self.roles["assistant"] + self.role_empty_sep

    def after_answer(self, answer: bytes) -> bytes:
        """What is fed after an answer: the separator, but for its longest beginning that the answer's bytes end with, so that
        the state has read both exactly once."""
        separator = self.seps[-1].encode("utf-8")
        begun = next(n for n in range(len(separator), -1, -1) if answer.endswith(separator[:n]))
        return separator[begun:]

    def _message(self, role: Literal["user", "assistant"], content: str) -> str:
        text = self.role_templates[role].replace(f"{{{role}_message}}", content)
        return self.roles[role] + self.role_content_sep + text + self.seps[0 if role == "user" else -1]


def load_template(name: str) -> Template:
    """A template of ``configs/templates`` by its name. Raises UserError, with the known names, for another."""
    return read(Template, config_path("templates", name), "correct it")

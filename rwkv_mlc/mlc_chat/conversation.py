"""Our prompt template from mlc_chat's ``ConvConfig``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from ..artifact.chat_config import SEPARATED_ROLES
from ..engine.templates import Template
from ..errors import UserError
from ..escaping import quoted
from ..schema import Roles
from .configs import ConvConfig

PLAIN = {
    "roles": Roles(user="", assistant=""),
    "role_templates": Roles(user="{user_message}", assistant="{assistant_message}"),
    "seps": ("",),
    "role_content_sep": "",
    "role_empty_sep": "",
    "system_message": "",
    "messages": (),
    "think": None,
    "tool_use": None,
}
"""What feeds a prompt as it is, and nothing before it."""


def overridden(template: Template, config: ConvConfig) -> Template:
    """The template with what a script overrides of it. Raises UserError for a message of neither role."""
    changes: dict[str, Any] = {
        "name": config.name,
        "roles": config.roles and Roles(user=config.roles[0], assistant=config.roles[1]),
        "seps": config.seps and tuple(config.seps),
        "role_content_sep": config.role_msg_sep,
        "role_empty_sep": config.role_empty_sep,
        "stop_str": None if config.stop_str is None else tuple(filter(None, (config.stop_str,))),
        "stop_token_ids": None if config.stop_tokens is None else tuple(config.stop_tokens),
    }
    changed = template.model_copy(update={name: value for name, value in changes.items() if value is not None})
    if config.system is not None:
        system = {"system_template": config.system + changed.seps[0], "system_message": config.system}
        changed = changed.model_copy(update=system)
    if config.messages is not None:
        messages = tuple(_messages(config.messages[: config.offset], changed.roles))
        changed = changed.model_copy(update={"messages": messages})
    if config.separator_style not in (None, SEPARATED_ROLES):
        changed = changed.model_copy(update=PLAIN)
    return changed


def _messages(messages: Iterable[tuple[str, str]], roles: Roles) -> Iterable[tuple[Literal["user", "assistant"], str]]:
    for name, text in messages:
        if name == roles["user"]:
            yield "user", text
        elif name == roles["assistant"]:
            yield "assistant", text
        else:
            raise UserError(
                f"conv_config.messages has one of {quoted(name)}, but the roles are {quoted(roles['user'])} and "
                f"{quoted(roles['assistant'])}; name one of them."
            )

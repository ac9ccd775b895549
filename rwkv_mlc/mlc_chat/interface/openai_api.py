"""A message of a conversation, where mlc_chat has it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class ChatMessage(BaseModel):
    """What ``role``, "user" or "assistant", has said. ``name`` has no effect."""

    model_config = ConfigDict(extra="forbid")

    role: str
    content: str
    name: str | None = None

"""What a script may override of an artifact's ``mlc-chat-config.json``: mlc_chat's three classes, all of whose fields
may be left out. A field that they do not have is refused, when it is given and when it is assigned."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated, ClassVar, Literal, TypeVar

from pydantic import ConfigDict, Field

from ..errors import UserError
from ..escaping import quoted
from ..typed_json import Count, Extent, parse

EXACT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


@dataclass(slots=True)
class ConvConfig:
    """The prompt template, in the fields of mlc_chat; ``conversation.overridden`` applies them.

    ``system`` is fed first, with the first separator after it; ``roles`` are what user and assistant are called in the
    text; ``messages`` is the exchange [role, text] that every conversation begins with, of which the first ``offset``,
    all where it is not given; ``separator_style`` is 0 for roles and separators, 1 or 2 for prompts fed as they are;
    ``seps`` end the messages of the user and of the assistant; ``role_msg_sep`` stands between a role and its message,
    ``role_empty_sep`` after the role of the one who is to answer; ``stop_str`` and ``stop_tokens`` end an answer. What
    an RWKV begins with is a state, so that ``prefix_tokens`` must be empty and ``add_bos`` False."""

    __pydantic_config__: ClassVar[ConfigDict] = EXACT

    name: str | None = None
    system: str | None = None
    roles: Annotated[list[str], Field(min_length=2, max_length=2)] | None = None
    messages: list[tuple[str, str]] | None = None
    offset: Count | None = None
    separator_style: Literal[0, 1, 2] | None = None
    seps: Annotated[list[str], Field(min_length=1, max_length=2)] | None = None
    role_msg_sep: str | None = None
    role_empty_sep: str | None = None
    stop_str: str | None = None
    stop_tokens: list[Count] | None = None
    prefix_tokens: Annotated[list[int], Field(max_length=0)] | None = None
    add_bos: Literal[False] | None = None

    def __post_init__(self) -> None:
        if self.messages is not None and self.offset is None:
            self.offset = len(self.messages)


@dataclass(slots=True)
class ChatConfig:
    """The settings of a ``ChatModule``.

    ``conv_template`` names a template of ``configs/templates``, over which ``conv_config`` goes; ``temperature``,
    ``repetition_penalty``, ``top_p`` and ``max_gen_len`` (tokens) are those of answers without a ``GenerationConfig``.
    ``mean_gen_len``, ``shift_fill_factor`` and ``max_window_size`` are for models with a window, which RWKV has not,
    and have no effect; neither have ``local_id``, ``model_category`` and ``model_name``. ``model_lib`` is warned of, as
    in mlc_chat; other ``tokenizer_files`` than the artifact's, several shards and presharded weights are refused."""

    __pydantic_config__: ClassVar[ConfigDict] = EXACT

    model_lib: str | None = None
    local_id: str | None = None
    conv_template: str | None = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    top_p: float | None = None
    mean_gen_len: int | None = None
    max_gen_len: Extent | None = None
    shift_fill_factor: float | None = None
    tokenizer_files: list[str] | None = None
    conv_config: ConvConfig | None = None
    model_category: str | None = None
    model_name: str | None = None
    num_shards: Literal[1] | None = None
    use_presharded_weights: Literal[False] | None = None
    max_window_size: int | None = None


@dataclass(slots=True)
class GenerationConfig:
    """The settings of one ``ChatModule.generate``; what is None is as the ``ChatConfig`` says.

    ``presence_penalty`` and ``frequency_penalty`` (-2 to 2) are subtracted from the logit of a token of the answer, the
    second for every time that it came; ``repetition_penalty`` has an effect where both are 0. ``max_gen_len`` counts
    tokens; ``n`` asks for a list of so many answers; ``stop`` is a string or several that end an answer, besides the
    template's. ``mean_gen_len`` has no effect."""

    __pydantic_config__: ClassVar[ConfigDict] = EXACT

    temperature: float | None = None
    repetition_penalty: float | None = None
    top_p: float | None = None
    mean_gen_len: int | None = None
    max_gen_len: Extent | None = None
    presence_penalty: float | None = 0.0
    frequency_penalty: float | None = 0.0
    n: Extent | None = None
    stop: str | list[str] | None = None


Config = TypeVar("Config", ChatConfig, GenerationConfig)


def checked(config: Config, kind: type[Config], name: str) -> Config:
    """A copy of what was given for the argument ``name``. Raises UserError where it is none of the ``kind``, and for a
    value that its field does not take."""
    if not isinstance(config, kind):
        raise UserError(f"{name} must be a {kind.__name__}, not {quoted(config)}.")
    return parse(kind, json.dumps(asdict(config), default=repr), name, "docs/mlc_chat.md says what its fields take")

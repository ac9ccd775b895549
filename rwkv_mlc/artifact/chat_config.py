"""``mlc-chat-config.json``: one file with the fields of both eras of MLC.

mlc_llm of today reads ``model_config`` and ``conv_template`` (``protocol/mlc_chat_config.py``), mlc_chat of 2023
``model_lib``, ``conv_config`` and lengths (``cpp/llm_chat.cc``, which refuses ``1`` where it expects ``1.0``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

from ..config import RWKVConfig
from ..quantization.schemes import Scheme
from ..schema import ChatConfig, Conversation, Conversation2023, InitialState, TokenizerInfo
from ..special_tokens import SpecialTokens

if TYPE_CHECKING:
    from ..models import Generation

# The author's values for chat, which belong together (ChatRWKV ``API_DEMO_CHAT.py``): a small nucleus, and penalties
# that keep it from repeating itself. ``penalty_decay`` is ours; other engines skip it.
SAMPLING: dict[str, Any] = {
    "temperature": 1.0,
    "top_p": 0.3,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "repetition_penalty": 1.0,
    "penalty_decay": 0.996,
}

TOKEN_POSTPROC: dict[str, Literal["byte_level", "byte_fallback"]] = {"pile": "byte_level", "world": "byte_fallback"}
"""``TokenizerInfo.token_postproc_method`` by ``Tokenizer.kind``."""

SEPARATED_ROLES: Final = 0  # SeparatorStyle of mlc_chat
LANGUAGE_MODEL: Final = 2


def chat_config(
    config: RWKVConfig,
    generation: Generation,
    scheme: Scheme,
    name: str,
    conv_template: Conversation,
    tokenizer_kind: str,
    tokenizer_files: list[str],
    active_vocab_size: int,
    prefill_chunk_size: int,
    tokens: SpecialTokens = SpecialTokens(end=(0,), begin=0),
    initial_state: InitialState | None = None,
) -> ChatConfig:
    """The content of ``mlc-chat-config.json`` for the artifact ``name``.

    ``tokenizer_kind`` is ``Tokenizer.kind``, ``active_vocab_size`` counts the ids that the tokenizer knows, the rest of the
    vocabulary being padding, and ``prefill_chunk_size`` is the longest prompt part of one call; ``tokens`` are the model's
    special ones, and ``initial_state`` is beside the file where the library's own is not what texts begin with."""
    return ChatConfig(
        version="0.1.0",
        model_type=generation.model_type,
        quantization=scheme.name,
        config=config,
        vocab_size=config.vocab_size,
        active_vocab_size=active_vocab_size,
        context_window_size=-1,
        sliding_window_size=-1,
        attention_sink_size=-1,
        prefill_chunk_size=prefill_chunk_size,
        tensor_parallel_shards=1,
        pipeline_parallel_stages=1,
        pad_token_id=tokens.padding or 0,
        bos_token_id=tokens.begin,
        eos_token_id=tokens.end[0] if len(tokens.end) == 1 else tokens.end,
        **SAMPLING,
        tokenizer_files=tuple(tokenizer_files),
        tokenizer_info=TokenizerInfo(
            token_postproc_method=TOKEN_POSTPROC[tokenizer_kind],
            prepend_space_in_encode=False,
            strip_space_in_decode=False,
        ),
        initial_state=initial_state,
        conv_template=conv_template,
        model_task="chat",
        model_lib=name,
        local_id=name,
        model_name=name.removesuffix(f"-{scheme.name}"),
        model_category=generation.category(tokenizer_kind),
        conv_config=_conv_config(conv_template),
        mean_gen_len=128,
        max_gen_len=config.context_length,
        max_window_size=config.context_length,
        shift_fill_factor=0.3,
        num_shards=1,
        use_presharded_weights=False,
    )


def _conv_config(template: Conversation) -> Conversation2023:
    """mlc_chat's form of a conversation template (``cpp/conversation.cc``, ``LoadJSONOverride``); it puts the first
    separator after the system text itself (``cpp/conversation.h``)."""
    roles = (template.roles["user"], template.roles["assistant"])
    messages = tuple((template.roles[role], text) for role, text in template.messages)
    system = template.system_template.replace("{system_message}", template.system_message)
    system = system if template.system_message else ""
    return Conversation2023(
        name=template.name,
        system=system.removesuffix(template.seps[0]),
        roles=roles,
        messages=messages,
        offset=len(messages),
        separator_style=SEPARATED_ROLES if any(roles) else LANGUAGE_MODEL,
        seps=template.seps,
        role_msg_sep=template.role_content_sep,
        role_empty_sep=template.role_empty_sep,
        stop_str=next(iter(template.stop_str), ""),
        stop_tokens=template.stop_token_ids,
        prefix_tokens=(),
        add_bos=False,
    )

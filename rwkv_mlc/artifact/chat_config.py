"""``mlc-chat-config.json``: one file with the fields of both eras of MLC.

mlc_llm of today reads ``model_config`` and ``conv_template`` (``protocol/mlc_chat_config.py``), mlc_chat of 2023
``model_lib``, ``conv_config`` and lengths (``cpp/llm_chat.cc``, which refuses ``1`` where it expects ``1.0``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config import RWKVConfig
from ..quantization.schemes import Scheme

# The author's values for chat, which belong together (ChatRWKV ``API_DEMO_CHAT.py``): a small nucleus, and penalties
# that keep it from repeating itself. ``penalty_decay`` is ours; other engines skip it.
SAMPLING = {
    "temperature": 1.0,
    "top_p": 0.3,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "repetition_penalty": 1.0,
    "penalty_decay": 0.996,
}

SEPARATED_ROLES, LANGUAGE_MODEL = 0, 2  # SeparatorStyle of mlc_chat


def chat_config(
    config: RWKVConfig,
    scheme: Scheme,
    name: str,
    conv_template: dict[str, Any],
    tokenizer_files: list[str],
    active_vocab_size: int,
    prefill_chunk_size: int,
) -> dict[str, Any]:
    """The content of ``mlc-chat-config.json`` for the artifact ``name``.

    ``conv_template`` follows mlc_llm's conversation protocol; ``active_vocab_size`` counts the ids that the tokenizer
    knows, the rest of the vocabulary being padding; ``prefill_chunk_size`` is the longest prompt part of one call."""
    return {
        "version": "0.1.0",
        "model_type": config.model_type,
        "quantization": scheme.name,
        "model_config": {
            **config.to_dict(),
            "num_heads": config.num_heads,
            "prefill_chunk_size": prefill_chunk_size,
        },
        "vocab_size": config.vocab_size,
        "active_vocab_size": active_vocab_size,
        "context_window_size": -1,
        "sliding_window_size": -1,
        "attention_sink_size": -1,
        "prefill_chunk_size": prefill_chunk_size,
        "tensor_parallel_shards": 1,
        "pipeline_parallel_stages": 1,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        **SAMPLING,
        "tokenizer_files": tokenizer_files,
        "tokenizer_info": {
            "token_postproc_method": "byte_level" if "tokenizer.json" in tokenizer_files else "byte_fallback",
            "prepend_space_in_encode": False,
            "strip_space_in_decode": False,
        },
        "conv_template": conv_template,
        "model_task": "chat",
        "model_lib": name,
        "local_id": name,
        "model_name": name.removesuffix(f"-{scheme.name}"),
        "model_category": _category(config, tokenizer_files),
        "conv_config": _conv_config(conv_template),
        "mean_gen_len": 128,
        "max_gen_len": config.context_length,
        "max_window_size": config.context_length,
        "shift_fill_factor": 0.3,
        "num_shards": 1,
        "use_presharded_weights": False,
    }


def _category(config: RWKVConfig, tokenizer_files: list[str]) -> str:
    """The names of mlc_chat: generation 5, or generation 4 with either vocabulary."""
    if config.model_type == "rwkv5":
        return "rwkv5"
    return "rwkv" if "tokenizer.json" in tokenizer_files else "rwkv_world"


def _conv_config(template: Mapping[str, Any]) -> dict[str, Any]:
    """mlc_chat's form of a conversation template (``cpp/conversation.cc``, ``LoadJSONOverride``); it puts the first
    separator behind the system text itself (``cpp/conversation.h``)."""
    roles = [template["roles"]["user"], template["roles"]["assistant"]]
    messages = [[template["roles"][role], text] for role, text in template.get("messages", [])]
    system = template.get("system_template", "{system_message}")
    system = system.replace("{system_message}", template.get("system_message", ""))
    return {
        "name": template["name"],
        "system": system.removesuffix(template["seps"][0]),
        "roles": roles,
        "messages": messages,
        "offset": len(messages),
        "separator_style": SEPARATED_ROLES if any(roles) else LANGUAGE_MODEL,
        "seps": template["seps"],
        "role_msg_sep": template.get("role_content_sep", ""),
        "role_empty_sep": template.get("role_empty_sep", ""),
        "stop_str": next(iter(template.get("stop_str", [])), ""),
        "stop_tokens": template.get("stop_token_ids", []),
        "prefix_tokens": template.get("system_prefix_token_ids") or [],
        "add_bos": False,
    }

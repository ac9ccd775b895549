"""What tells a runner how to talk to a model: its tokenizer's files, ``mlc-chat-config.json`` and, where it was tuned, the
state that texts begin with."""

from __future__ import annotations

from pathlib import Path

from ..artifact import CHAT_CONFIG, PARAMS, chat_config, write_initial_state, write_json
from ..models import generation_of
from ..quantization.schemes import Scheme
from ..schema import LONGEST_PREFILL_CHUNK
from ..tokenizer import load_tokenizer, write_tokenizer_files
from .source import Source


def write_config(source: Source, scheme: Scheme, name: str, folder: Path) -> Path:
    """Write these files into ``folder``; returns the path of ``mlc-chat-config.json``."""
    params = folder / PARAMS
    params.mkdir(parents=True, exist_ok=True)
    files = write_tokenizer_files(source.vocabulary, params, source.config.vocab_size)
    tokenizer, tuned = load_tokenizer(source.vocabulary), source.tuned_state
    config = chat_config(
        source.config,
        generation_of(source.config),
        scheme,
        name,
        source.template,
        tokenizer.kind,
        files,
        tokenizer.max_id + 1,
        LONGEST_PREFILL_CHUNK,
        source.tokens,
        write_initial_state(params, tuned.arrays, tuned.source) if tuned else None,
    )
    write_json(params / CHAT_CONFIG, config.to_dict())
    return params / CHAT_CONFIG

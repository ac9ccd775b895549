"""What a scorer says of a checkpoint, whatever runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..config import RWKVConfig
from ..engine.templates import load_template
from ..models import generation_of
from ..tokenizer import END_OF_TEXT, find_vocabulary, load_tokenizer
from ..weights.checkpoint import Checkpoint


def described(checkpoint: Checkpoint, config: RWKVConfig, vocabulary: Path | None) -> dict[str, Any]:
    """The fields of ``Scorer`` that do not depend on what runs the model. Raises UserError where no vocabulary fits."""
    tokenizer = load_tokenizer(find_vocabulary(checkpoint, config, vocabulary))
    template = load_template(generation_of(config).template(tokenizer.kind))
    return {
        "name": checkpoint.name,
        "tokenizer": tokenizer,
        "vocab_size": config.vocab_size,
        "begin": checkpoint.tokens.begin or END_OF_TEXT,
        "ends": tokenizer.end_ids.union(checkpoint.tokens.end, template.stop_token_ids),
        "template": template,
        "quantization": None,
        "bits_per_weight": None,
    }

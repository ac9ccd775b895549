"""The files from which ``AutoTokenizer`` of transformers makes a model's tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ..artifact.disk import write_json
from ..data_files import ROOT
from ..engine.templates import Template
from ..text_encoding import in_utf8
from ..tokenizer import Tokenizer
from ..tokenizer.world import WorldTokenizer
from ..weights.folder import TOKENIZER_CONFIG
from .chat_template import chat_template

CODE = ROOT / "huggingface"
END_OF_TEXT = "<|endoftext|>"
VOCABULARY = "rwkv_vocab_v20230424.txt"
"""What other programs look for in a folder (llama.cpp's ``conversion/rwkv.py``), whatever the vocabulary."""

TOKENIZER_CODE, TOKENIZER_CLASS = "tokenization_rwkv.py", "RwkvTokenizer"


def write_tokenizer(folder: Path, tokenizer: Tokenizer, template: Template, context_length: int) -> None:
    """A World vocabulary with the code of a tokenizer on bytes, or a ``tokenizer.json``, which transformers reads itself; the
    configuration and the chat template in Jinja."""
    special = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT}
    config: dict[str, Any] = {"model_max_length": context_length, "padding_side": "left"}
    if isinstance(tokenizer, WorldTokenizer):
        (folder / VOCABULARY).write_text(tokenizer.lines(), encoding="utf-8")
        shutil.copyfile(CODE / TOKENIZER_CODE, folder / TOKENIZER_CODE)
        module = TOKENIZER_CODE.removesuffix(".py")
        config |= special | {
            "tokenizer_class": TOKENIZER_CLASS,
            "auto_map": {"AutoTokenizer": [f"{module}.{TOKENIZER_CLASS}", None]},
        }
    else:
        (file,) = tokenizer.files
        (folder / "tokenizer.json").write_bytes(in_utf8(file.read_bytes(), file))
        config |= {"tokenizer_class": "PreTrainedTokenizerFast"} | (special if tokenizer.end_ids else {})
    write_json(folder / TOKENIZER_CONFIG, config)
    (folder / "chat_template.jinja").write_text(chat_template(template), encoding="utf-8")

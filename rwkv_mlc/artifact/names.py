"""Names of the files of an artifact."""

from __future__ import annotations

import re

from ..errors import UserError
from ..escaping import quoted
from ..typed_json import file_name

PARAMS = "params"
CHAT_CONFIG = "mlc-chat-config.json"
BUILD_RECORD = "build-record.json"
TENSOR_INDEX = "tensor-cache.json"
TENSOR_INDEX_2023 = "ndarray-cache.json"
SHARD = "params_shard_{}.bin"
VERIFIED = ".verified.json"
OBJECTS = ".tar"  # a library's object files, to be linked into a program
INITIAL_STATE = "initial_state.safetensors"
CONFIG_FILES = (CHAT_CONFIG, "rwkv_vocab.txt", "tokenizer_model", "tokenizer.json", INITIAL_STATE)


def artifact_name(model: str, quantization: str) -> str:
    """Raises UserError for a model whose name is none of a folder's."""
    name = f"{model}-{quantization}"
    check_artifact_name(name)
    return name


def check_artifact_name(name: str) -> None:
    """Raises UserError for a name that the files of an artifact cannot begin with."""
    try:
        file_name(name)
    except ValueError:
        raise UserError(
            f"An artifact cannot be called {quoted(name)}; give the checkpoint, or the folder, a short name of "
            "printable characters."
        ) from None


def library_name(name: str, target: str, suffix: str) -> str:
    """The file of the artifact ``name``'s library; ``suffix`` with its dot."""
    return f"{name}-{target}{suffix}"


def system_lib_prefix(name: str) -> str:
    """What the symbols of the object files of the artifact ``name`` begin with, so that several fit into one program;
    mlc_llm looks for it under ``model_lib``."""
    return re.sub(r"\W", "_", name) + "_"

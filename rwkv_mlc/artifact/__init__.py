"""The artifact, ``dist/<model>-<quantization>/``: every path and file name in it, reading, checking and writing.

<name>-<target>.so            a library for each target; .dylib for macOS, .tar for object files
build-record.json             what it was built from and for
params/mlc-chat-config.json   model, tokenizer, prompt template, sampling defaults
params/tensor-cache.json      index of the shards; ndarray-cache.json is the same under its name of 2023
params/params_shard_*.bin
params/rwkv_vocab.txt         and tokenizer_model, or tokenizer.json
params/initial_state.safetensors   the state before the first token, where state tuning has trained it
"""

from ..schema import LibraryRecord
from .artifact import Artifact
from .chat_config import chat_config
from .disk import staging, write_json
from .finding import artifacts_in, is_artifact, no_artifact
from .initial_state import write_initial_state
from .names import CHAT_CONFIG, PARAMS, artifact_name, library_name
from .record import BuildRecord, add_library, package_versions
from .shards import ShardWriter

__all__ = [
    "CHAT_CONFIG",
    "PARAMS",
    "Artifact",
    "BuildRecord",
    "LibraryRecord",
    "ShardWriter",
    "add_library",
    "artifact_name",
    "artifacts_in",
    "chat_config",
    "is_artifact",
    "library_name",
    "no_artifact",
    "package_versions",
    "staging",
    "write_initial_state",
    "write_json",
]

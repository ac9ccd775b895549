"""Whole files of every kind, which are then changed: written once into a folder."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from rwkv_mlc.artifact import Artifact
from rwkv_mlc.debug.recipe import Recipe
from rwkv_mlc.debug.reference import dump_checkpoint
from rwkv_mlc.engine.compatibility import read_metadata
from rwkv_mlc.engine.sampler import Counts
from rwkv_mlc.engine.state_file import SavedState, save_state
from rwkv_mlc.verification.library import BLOB, Library, _content, _defined
from rwkv_mlc.weights import open_checkpoint
from support.gguf_files import small_model, write_gguf
from support.mlc_folder import write_mlc_folder
from support.rwkv_cpp import write_rwkv_cpp
from support.synthetic import synthetic_checkpoint

SHAPE = {"hidden_size": 32, "layers": 2, "head_size": 16, "vocab_size": 40}
LORA = {f"blocks.0.att.key.lora_{side}": np.ones(shape, np.float32) for side, shape in (("A", (2, 32)), ("B", (32, 2)))}


class _Storage:
    def __init__(self, key: str, size: int):
        self.key, self.size = key, size


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return ("storage", _FLOAT, obj.key, "cpu", obj.size) if isinstance(obj, _Storage) else None


def _named(module: str, name: str) -> Any:
    """What pickles as the global ``module.name``, without that module."""
    return type(name, (), {"__module__": module, "__qualname__": name})


_FLOAT = _named("torch", "FloatStorage")
_REBUILD = _named("torch._utils", "_rebuild_tensor_v2")


class _Tensor:
    def __init__(self, key: str, array: np.ndarray):
        strides = tuple(stride // array.itemsize for stride in array.strides)
        self.arguments = (_Storage(key, array.size), 0, array.shape, strides, False, OrderedDict())

    def __reduce__(self) -> Any:
        return _REBUILD, self.arguments


def pickled(tensors: dict[str, np.ndarray]) -> bytes:
    """As PyTorch pickles a dictionary of tensors, whose storages are 0, 1, ..."""
    import sys
    import types

    kinds = (_FLOAT, _REBUILD)
    real = {kind.__module__: sys.modules.get(kind.__module__) for kind in kinds}
    for kind in kinds:  # the pickler asks whether they are where they say
        sys.modules[kind.__module__] = types.ModuleType(kind.__module__)
    for kind in kinds:
        setattr(sys.modules[kind.__module__], kind.__name__, kind)
    try:
        file = io.BytesIO()
        content = OrderedDict((name, _Tensor(str(i), array)) for i, (name, array) in enumerate(tensors.items()))
        _Pickler(file, protocol=2).dump(content)
        return file.getvalue()
    finally:
        for name, module in real.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def pth(data: bytes, tensors: dict[str, np.ndarray]) -> bytes:
    """A checkpoint of a pickle and storages."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model/data.pkl", data)
        for i, array in enumerate(tensors.values()):
            archive.writestr(f"model/data/{i}", array.tobytes())
    return file.getvalue()


def tokenizer_json() -> bytes:
    """A byte-level BPE of single bytes and one pair."""
    import tokenizers

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|endoftext|>": 0} | {letter: i for i, letter in enumerate(alphabet, 1)} | {"ab": 257}
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [("a", "b")]))
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    bpe.add_special_tokens(["<|endoftext|>"])
    return bpe.to_str().encode()


def write(folder: Path, artifact: Path) -> None:
    """Every file that a target starts from. ``artifact`` is one with a library for this machine."""
    folder.mkdir(parents=True)
    shutil.copytree(artifact, folder / "artifact")
    opened = Artifact.open(folder / "artifact")
    library = opened.library("llvm").path
    shutil.copyfile(library, folder / "library.so")
    with tarfile.open(folder / "library.tar", "w") as archive:
        archive.add(library, "lib0.o")
    (folder / "metadata.json").write_text(json.dumps(read_metadata(library).to_dict()), encoding="utf-8")
    read = Library.open(library)
    (binary,) = read.binaries
    blob = next(name for name in _defined(binary) if name.endswith(BLOB))
    (folder / "modules.bin").write_bytes(_content(binary, blob))

    tensors = synthetic_checkpoint("5.2", **SHAPE)
    (folder / "model.pkl").write_bytes(pickled(tensors))
    (folder / "model.pth").write_bytes(pth((folder / "model.pkl").read_bytes(), tensors))
    save_file(tensors, folder / "model.safetensors")
    write_rwkv_cpp(folder / "model.bin", tensors)
    write_rwkv_cpp(folder / "quantized.bin", tensors, "Q5_1")
    write_gguf(folder / "model.gguf", "rwkv7", small_model("rwkv7"), "Q4_0")
    write_mlc_folder(folder / "mlc", tensors)
    (folder / "peft").mkdir()
    save_file(LORA, folder / "peft/adapter_model.safetensors")
    (folder / "peft/adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": 4, "use_rslora": false}')
    states = {f"blocks.{i}.att.time_state": np.ones((2, 16, 16), np.float32) for i in range(SHAPE["layers"])}
    save_file(states, folder / "tuned.safetensors")
    (folder / "config.json").write_text('{"model_type": "rwkv5", "context_length": 64, "head_size_divisor": 8}')
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 5], "bos_token_id": 0, "pad_token_id": 0}')
    (folder / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|endoftext|>", "special": true}}')
    (folder / "special_tokens_map.json").write_text('{"eos_token": "<|endoftext|>", "pad_token": {"content": "x"}}')
    (folder / "lora.pkl").write_bytes(pickled(LORA))
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(tensors, "model.safetensors")}
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "vocab.txt").write_text(
        "".join(f"{i} {chr(i)!r} {len(chr(i).encode())}\n" for i in range(1, 400)), "utf-8"
    )
    (folder / "tokenizer.json").write_bytes(tokenizer_json())

    checkpoint = open_checkpoint(str(folder / "model.safetensors"))
    dump_checkpoint(checkpoint, Recipe((1, 2, 3), 1, 2)).write(folder / "dump")
    arrays = {"blocks.0.x": np.zeros((1, 4), np.float32), "blocks.0.y": np.ones((1, 2, 3), np.float32)}
    counts = Counts(np.array([1, 4], np.int32), np.ones(2, np.float32))
    save_state(folder / "a.state", opened, SavedState(arrays, np.arange(5, dtype=np.float32), counts))

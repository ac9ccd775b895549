"""Folders of parameters as mlc_llm's ``convert_weight`` and ``gen_config`` write them, from BlinkDL's tensors."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import msgpack
import numpy as np

from support.build_inputs import huggingface_name, write_json

BITS = {"q3f16_1": (3, 40, 10), "q4f16_1": (4, 32, 8), "q4f16_2": (4, 32, 8), "q4f16_0": (4, 32, 8)}
"""Bits of a weight, weights of a group and of a word."""

FLOAT32 = ("time_faaaa", "ln_x.weight", "ln_x.bias", "time_decay")


def write_mlc_folder(
    folder: Path,
    tensors: dict[str, np.ndarray],
    quantization: str = "q4f16_1",
    rescale_every: int = 2,
    encoding: str = "f32-to-bf16",
    index: str = "tensor-cache.json",
) -> dict[str, np.ndarray]:
    """Write RWKV-5.2 or 6 and a vocabulary of single bytes; returns what is stored by its name, float32 before its encoding."""
    folder.mkdir(parents=True, exist_ok=True)
    version = "6" if "blocks.0.att.time_maa_x" in tensors else "5"
    stored: dict[str, np.ndarray] = {}
    for source, array in tensors.items():
        stored |= _stored(_name(source), array, version, quantization, rescale_every)
    records, data = [], bytearray()
    for name, array in stored.items():
        rounded = encoding == "f32-to-bf16" and array.dtype == np.float32
        raw = (array.astype(ml_dtypes.bfloat16) if rounded else array).tobytes()
        entry = {"name": name, "shape": list(array.shape), "dtype": str(array.dtype), "format": encoding}
        records.append({**entry, "nbytes": len(raw), "byteOffset": len(data)})
        data += raw
    (folder / "params_shard_0.bin").write_bytes(data)
    shard = {"dataPath": "params_shard_0.bin", "format": "raw-shard", "nbytes": len(data), "records": records}
    shard["md5sum"] = hashlib.md5(data).hexdigest()
    write_json(folder / index, {"metadata": {"ParamSize": len(records)}, "records": [shard]})
    vocab_size, hidden_size = tensors["emb.weight"].shape
    heads, head_size = tensors["blocks.0.att.time_faaaa"].shape
    model: dict[str, Any] = {
        "hidden_size": hidden_size,
        "num_hidden_layers": len([name for name in tensors if name.endswith("att.key.weight")]),
        "vocab_size": vocab_size,
        "head_size": head_size,
        "num_heads": heads,
        "rescale_every": rescale_every,
        "layer_norm_epsilon": 1e-5,
    }
    chat = {
        "model_type": f"rwkv{version}",
        "quantization": quantization,
        "model_config": model,
        "vocab_size": vocab_size,
    }
    write_json(folder / "mlc-chat-config.json", chat)
    (folder / "tokenizer_model").write_bytes(msgpack.packb({i + 1: bytes([i]) for i in range(256)}))
    return stored


def _name(source: str) -> str:
    return huggingface_name(source).replace("rwkv.", "model.")


def _stored(name: str, array: np.ndarray, version: str, quantization: str, rescale_every: int) -> dict[str, np.ndarray]:
    if name.endswith("attention.time_decay") and version == "5":
        array = np.exp(-np.exp(array))
    layer = re.match(r"model\.blocks\.(\d+)\.(?:attention\.output|feed_forward\.value)\.", name)
    if layer and rescale_every:
        array = array / 2 ** (int(layer[1]) // rescale_every)
    half = np.float32 if quantization == "q0f32" or name.endswith(FLOAT32) else np.float16
    is_matrix = array.ndim == 2 and name.endswith(".weight")
    outside = name in ("model.embeddings.weight", "head.weight")
    if not is_matrix or quantization.startswith("q0") or (quantization == "q4f16_2" and outside):
        return {name: np.ascontiguousarray(array, half)}
    weight, scale = _packed(array.astype(np.float16), *BITS[quantization])
    if quantization == "q4f16_0" and name != "model.embeddings.weight":
        weight, scale = weight.T, scale.T
    stem = name.removesuffix(".weight")
    return {f"{stem}.q_weight": np.ascontiguousarray(weight), f"{stem}.q_scale": np.ascontiguousarray(scale)}


def _packed(matrix: np.ndarray, bits: int, group: int, per_word: int) -> tuple[np.ndarray, np.ndarray]:
    largest = 2 ** (bits - 1) - 1
    padded = np.pad(matrix, ((0, 0), (0, -matrix.shape[1] % group))).astype(np.float32)
    groups = padded.reshape(len(matrix), -1, group)
    scale = (np.abs(groups).max(-1) / largest).astype(np.float16)
    levels = np.clip(np.rint(groups / scale.astype(np.float32)[..., None] + largest), 0, 2 * largest).astype(np.uint64)
    words = (levels.reshape(len(matrix), -1, per_word) << (np.arange(per_word, dtype=np.uint64) * bits)).sum(-1)
    return words.astype(np.uint32), scale

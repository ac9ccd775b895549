"""Files as rwkv.cpp writes them: its converter (``convert_pytorch_to_ggml.py``) and its quantizer (``rwkv_quantize.inc``)."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np

NUMBERS = {"FP32": 0, "FP16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 7, "Q5_1": 8, "Q8_0": 9}
QUANTIZED = tuple(NUMBERS)[2:]
FLOATS = ("time_", "k_k", "k_a", "r_k", "x_", "w0", "a0", "v0")


def write_rwkv_cpp(path: Path, weights: dict[str, np.ndarray], kind: str = "FP32", version: int = 101) -> Path:
    """BlinkDL's tensors with rwkv.cpp's axes of length 1 and its exponentials."""
    vocab_size, hidden_size = weights["emb.weight"].shape
    layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    with open(path, "wb") as file:
        file.write(struct.pack("<6i", 0x67676D66, version, vocab_size, hidden_size, layers, NUMBERS[kind]))
        for name, array in converted(weights).items():
            number, data = stored(name, array, kind)
            key = name.encode()
            file.write(struct.pack("<3i", array.ndim, len(key), number))
            file.write(struct.pack(f"<{array.ndim}i", *array.shape[::-1]) + key + data)
    return path


def converted(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    heads, gated = "blocks.0.att.ln_x.weight" in weights, "blocks.0.att.gate.weight" in weights
    if "blocks.0.att.r_k" in weights:
        return _of_7(weights)
    if "blocks.0.att.time_maa_x" in weights:
        return {name: _of_6(name, array, weights["blocks.0.att.time_faaaa"].shape) for name, array in weights.items()}
    result = {}
    for name, array in weights.items():
        if ".time_" in name:
            array = array.squeeze()
        if name.endswith("time_decay") and not heads:
            array = -np.exp(array)
        elif name.endswith("time_decay"):
            array = np.exp(-np.exp(array))
            array = array[..., None] if gated else array.reshape(-1, 1, 1)
        elif name.endswith("time_first") and heads:
            array = np.exp(array).reshape(-1, 1, 1)
        elif name.endswith("time_faaaa"):
            array = array[..., None]
        result[name] = array
    return result


def _of_6(name: str, array: np.ndarray, heads: tuple[int, ...]) -> np.ndarray:
    part = name.rpartition(".")[2]
    if part in ("time_maa_w1", "time_maa_w2", "time_decay_w1", "time_decay_w2"):
        return array.swapaxes(-1, -2)
    if part == "time_decay":
        return array.reshape(*heads, 1)
    if part == "time_faaaa":
        return array[..., None]
    return array.squeeze() if ".time_" in name else array


def _of_7(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The six mixes of a layer are one tensor, where the first of them was."""
    low_rank = tuple(f".att.{letter}{half}" for letter in "wavg" for half in "12")
    result = {}
    for name, array in weights.items():
        block, _, part = name.rpartition(".att.")
        if not part.startswith("x_"):
            result[name] = array.T if name.endswith(low_rank) else array
        elif f"{block}.att.x_rwkvag" not in result:
            vectors = [weights[f"{block}.att.x_{letter}"] for letter in "rwkvag"]
            result[f"{block}.att.x_rwkvag"] = np.concatenate(vectors)
    return result


def stored(name: str, array: np.ndarray, kind: str) -> tuple[int, bytes]:
    """The number of a tensor's type, and its bytes. Quantized are matrices; the embedding and the head stay FP16 there."""
    array = np.ascontiguousarray(array)
    if kind == "FP32" or array.ndim == 1 or name.rpartition(".")[2].startswith(FLOATS):
        return NUMBERS["FP32"], array.astype(np.float32).tobytes()
    if kind == "FP16" or array.ndim > 2 or array.shape[1] % 32 or name in ("emb.weight", "head.weight"):
        return NUMBERS["FP16"], array.astype(np.float16).tobytes()
    return NUMBERS[kind], gguf.quantize(array.astype(np.float32), gguf.GGMLQuantizationType[kind]).tobytes()

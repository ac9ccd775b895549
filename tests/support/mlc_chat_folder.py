"""Folders of numbered parameters as mlc_chat's build of 2023 writes them (mlc-llm before March 2024, in ``mlc_llm``:
``relax_model/rwkv.py``, ``relax_model/rwkv5.py``, ``quantization/group_quantization.py``), from BlinkDL's tensors."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgpack
import numpy as np

from support.build_inputs import write_json

ATTENTION = {
    "rwkv_world": "time_decay time_first time_mix_k time_mix_v time_mix_r key value receptance output",
    "rwkv5": "time_decay time_faaaa time_mix_g time_mix_k time_mix_v time_mix_r key value receptance gate output"
    " ln_x.weight ln_x.bias",
}
"""By ``model_category``, what its class defines in this order; a matrix is ``.weight``."""

GROUPS = {"q3f16_1": (3, 40, np.uint16), "q8f16_1": (8, 32, np.uint32)} | dict.fromkeys(
    ("q4f16_0", "q4f16_1", "q4f16_2"), (4, 32, np.uint32)
)
"""Bits of a weight, weights of a group, and the words that they lie in."""


def numbered_names(category: str, layers: int) -> list[str]:
    """BlinkDL's names in mlc_chat's order."""
    names = ["emb.weight", "blocks.0.ln0.weight", "blocks.0.ln0.bias"]
    for layer in range(layers):
        block = f"blocks.{layer}"
        names += [f"{block}.{norm}.{part}" for norm in ("ln1", "ln2") for part in ("weight", "bias")]
        names += [f"{block}.att.{part}" for part in ATTENTION[category].split()]
        names += [f"{block}.ffn.{part}" for part in "time_mix_k time_mix_r key receptance value".split()]
    matrices = ("key", "value", "receptance", "gate", "output")
    names = [f"{name}.weight" if name.endswith(matrices) else name for name in names]
    return [*names, "ln_out.weight", "ln_out.bias", "head.weight"]


def write_mlc_chat_folder(
    folder: Path,
    tensors: dict[str, np.ndarray],
    quantization: str = "q4f16_1",
    rescale_every: int = 2,
    model: str = "RWKV-4-World-tiny",
) -> list[tuple[str, np.ndarray]]:
    """Write RWKV-4 or 5.2, a vocabulary of single bytes and, as a reader needs it, ``config.json``; returns what is stored
    in its order, with BlinkDL's names and ``:words`` and ``:scales`` after those of quantized matrices."""
    folder.mkdir(parents=True, exist_ok=True)
    layers = len([name for name in tensors if name.endswith("att.key.weight")])
    category = "rwkv5" if "blocks.0.att.ln_x.weight" in tensors else "rwkv_world"
    stored: list[tuple[str, np.ndarray]] = []
    for name in numbered_names(category, layers):
        stored += _stored(name, tensors[name], category, quantization, rescale_every)
    shards: list[list[tuple[int, np.ndarray]]] = [[], []]
    for i, (_, array) in enumerate(stored):
        shards[array.nbytes > 4096].append((i, array))  # large tensors have shards of their own
    records = [_shard(folder, i, shard) for i, shard in enumerate(shards)]
    write_json(folder / "ndarray-cache.json", {"metadata": {"ParamSize": len(stored)}, "records": records})
    vocab_size, hidden_size = tensors["emb.weight"].shape
    chat = {
        "model_lib": f"{model}-{quantization}",
        "local_id": f"{model}-{quantization}",
        "conv_template": category,
        "temperature": 1.2,
        "repetition_penalty": 0.996,
        "top_p": 0.6,
        "tokenizer_files": ["tokenizer_model"],
        "model_category": category,
        "model_name": model,
        "vocab_size": vocab_size,
    }
    write_json(folder / "mlc-chat-config.json", chat)
    config = {"model_type": "rwkv", "hidden_size": hidden_size, "rescale_every": rescale_every}
    write_json(folder / "config.json", config | {"num_hidden_layers": layers, "context_length": 512})
    (folder / "tokenizer_model").write_bytes(msgpack.packb({i + 1: bytes([i]) for i in range(256)}))
    return stored


def _shard(folder: Path, number: int, tensors: list[tuple[int, np.ndarray]]) -> dict:
    data, records = bytearray(), []
    for i, array in tensors:
        entry = {"name": f"param_{i}", "shape": list(array.shape), "dtype": str(array.dtype), "format": "raw"}
        records.append({**entry, "nbytes": array.nbytes, "byteOffset": len(data)})
        data += array.tobytes()
    path = folder / f"params_shard_{number}.bin"
    path.write_bytes(data)
    shard = {"dataPath": path.name, "format": "raw-shard", "nbytes": len(data), "records": records}
    return shard | {"md5sum": hashlib.md5(data).hexdigest()}


def _stored(
    name: str, array: np.ndarray, category: str, quantization: str, rescale_every: int
) -> list[tuple[str, np.ndarray]]:
    model_dtype = np.float32 if quantization == "q0f32" else np.float16
    if rescale_every and name.endswith(("att.output.weight", "ffn.value.weight")):
        array = array / 2 ** (int(name.split(".")[1]) // rescale_every)
    if name.endswith("time_decay"):
        decay = -np.exp(array.astype(np.float32))
        return [(name, np.exp(decay) if category == "rwkv5" else decay)]
    if name.endswith(("time_first", "time_faaaa", "ln_x.weight", "ln_x.bias")):
        return [(name, array.astype(np.float32))]
    if "time_mix_" in name:
        array = array.squeeze()
    array = array.astype(model_dtype)
    outside = name in ("emb.weight", "head.weight")
    if array.ndim == 1 or quantization not in GROUPS or (quantization == "q4f16_2" and outside):
        return [(name, np.ascontiguousarray(array))]
    words, scales = _quantized(array, *GROUPS[quantization])
    if quantization == "q4f16_0" and name != "emb.weight":
        words, scales = words.T, scales.T
    return [(f"{name}:words", np.ascontiguousarray(words)), (f"{name}:scales", np.ascontiguousarray(scales))]


def _quantized(matrix: np.ndarray, bits: int, group: int, word: type) -> tuple[np.ndarray, np.ndarray]:
    (rows, columns), largest = matrix.shape, 2 ** (bits - 1) - 1
    groups = -(-columns // group)
    padded = np.zeros((rows, groups * group), np.float16)
    padded[:, :columns] = matrix
    padded = padded.reshape(rows, groups, group)
    scales = np.maximum(np.abs(padded).max(-1), np.float16(1e-4)) / np.float16(largest)
    levels = (
        np.rint(padded / scales[..., None] + np.float16(largest)).clip(0, 2 * largest).reshape(rows, -1).astype(word)
    )
    levels[:, columns:] = 0
    per_word = 8 * np.dtype(word).itemsize // bits
    words = np.zeros((rows, groups * group // per_word), word)
    for k in range(per_word):
        words |= levels[:, k::per_word] << word(k * bits)
    return words, scales


def stored_values(
    tensors: dict[str, np.ndarray], stored: list[tuple[str, np.ndarray]], quantization: str, rescale_every: int
) -> dict[str, np.ndarray]:
    """BlinkDL's values, float64, that what is ``stored`` of ``tensors`` stands for."""
    by_name, values = dict(stored), {}
    for stem, array in ((name.removesuffix(":words"), array) for name, array in stored if not name.endswith(":scales")):
        if f"{stem}:scales" in by_name:
            array = _dequantized(array, by_name[f"{stem}:scales"], quantization, stem)
            array = array[:, : tensors[stem].shape[1]]
        array = array.astype(np.float64)
        if stem.endswith("time_decay"):
            array = np.log(-np.log(array) if (array > 0).all() else -array)
        if rescale_every and stem.endswith(("att.output.weight", "ffn.value.weight")):
            array = array * 2 ** (int(stem.split(".")[1]) // rescale_every)
        values[stem] = array.reshape(tensors[stem].shape)
    return values


def _dequantized(words: np.ndarray, scales: np.ndarray, quantization: str, stem: str) -> np.ndarray:
    bits, group, word = GROUPS[quantization]
    if quantization == "q4f16_0" and stem != "emb.weight":
        words, scales = words.T, scales.T
    shifts = np.arange(8 * np.dtype(word).itemsize // bits, dtype=word) * word(bits)
    levels = (words[..., None] >> shifts) & word(2**bits - 1)
    centered = levels.reshape(*scales.shape, group).astype(np.float64) - (2 ** (bits - 1) - 1)
    return (centered * scales[..., None]).reshape(len(words), -1)

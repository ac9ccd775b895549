"""Files as llama.cpp's converter writes them, through its own package and its table of names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

Tensors = dict[str, np.ndarray]
TRANSPOSED = ("time_maa_w1", "time_decay_w1", "time_decay_w2", *(f"{a}{b}" for a in "wavg" for b in "12"))


def small_model(architecture: str, hidden_size: int = 64, layers: int = 2, head_size: int = 32) -> Tensors:
    """BlinkDL's tensors of RWKV-6 or RWKV-7, with a rank of its own for each low-rank pair."""
    rng, c, f, n = np.random.default_rng(3), hidden_size, 2 * hidden_size, head_size
    tensors: Tensors = {}

    def put(name: str, *shape: int) -> None:
        tensors[name] = rng.normal(size=shape).astype(np.float32)

    put("emb.weight", 41, c)
    for i in range(layers):
        block = f"blocks.{i}"
        for norm in ("ln1", "ln2", "att.ln_x", *(["ln0"] if i == 0 else [])):
            put(f"{block}.{norm}.weight", c)
            put(f"{block}.{norm}.bias", c)
        for matrix in ("att.key", "att.value", "att.receptance", "att.output"):
            put(f"{block}.{matrix}.weight", c, c)
        put(f"{block}.ffn.key.weight", f, c)
        put(f"{block}.ffn.value.weight", c, f)
        if architecture == "rwkv6":
            put(f"{block}.att.gate.weight", c, c)
            put(f"{block}.ffn.receptance.weight", c, c)
            for letter in "xwkvrg":
                put(f"{block}.att.time_maa_{letter}", 1, 1, c)
            for letter in "kr":
                put(f"{block}.ffn.time_maa_{letter}", 1, 1, c)
            put(f"{block}.att.time_maa_w1", c, 5 * 7)
            put(f"{block}.att.time_maa_w2", 5, 7, c)
            put(f"{block}.att.time_decay", 1, 1, c)
            put(f"{block}.att.time_decay_w1", c, 9)
            put(f"{block}.att.time_decay_w2", 9, c)
            put(f"{block}.att.time_faaaa", c // n, n)
        else:
            for letter in "rwkvag":
                put(f"{block}.att.x_{letter}", 1, 1, c)
            for letter, rank in {"w": 9, "a": 11, "v": 5, "g": 13}.items():
                if letter == "v" and i == 0:
                    continue
                put(f"{block}.att.{letter}1", c, rank)
                put(f"{block}.att.{letter}2", rank, c)
                if letter != "g":
                    put(f"{block}.att.{letter}0", 1, 1, c)
            put(f"{block}.att.k_k", 1, 1, c)
            put(f"{block}.att.k_a", 1, 1, c)
            put(f"{block}.att.r_k", c // n, n)
            put(f"{block}.ffn.x_k", 1, 1, c)
    put("ln_out.weight", c)
    put("ln_out.bias", c)
    put("head.weight", 41, c)
    return tensors


def write_gguf(
    path: Path,
    architecture: str,
    tensors: Tensors,
    kind: str = "F32",
    rescale_every: int = 0,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """``kind`` is the type of matrices. ``facts`` are more of the architecture's, or replace those that are written."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_tokenizer_model("rwkv")
    writer.add_token_list([f"token {i}" for i in range(300)])
    writer.add_token_types([1] * 300)
    writer.add_token_scores([0.5] * 300)
    heads = next(array for name, array in tensors.items() if name.endswith(("time_faaaa", "r_k")))
    known = {
        "context_length": 1 << 20,
        "attention.head_count": 0,
        "attention.layer_norm_epsilon": 1e-5,
        "wkv.head_size": heads.shape[1],
        "rescale_every_n_layers": rescale_every,
    }
    for name, value in {**known, **(facts or {})}.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
        add(name if name.startswith(("general.", "split.")) else f"{architecture}.{name}", value)
    for name, array in converted(architecture, tensors, rescale_every).items():
        number, data = stored(name, array, kind)
        writer.add_tensor(name, data, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def converted(architecture: str, tensors: Tensors, rescale_every: int = 0) -> Tensors:
    """llama.cpp's names and shapes (``conversion/rwkv.py``)."""
    layers = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
    kind = next(each for each, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names, result = gguf.get_tensor_name_map(kind, layers), Tensors()
    order = {"rwkv6": "wkvrg", "rwkv7": "rwkvag"}[architecture]
    mix = {"rwkv6": "att.time_maa_{}", "rwkv7": "att.x_{}"}[architecture]
    for i in range(layers):
        vectors = [tensors[f"blocks.{i}.{mix.format(letter)}"].reshape(-1) for letter in order]
        result[f"blk.{i}.time_mix_lerp_fused.weight"] = np.stack(vectors)[:, None, None]
    for name, array in tensors.items():
        part = name.rpartition(".")[2]
        if any(name.endswith(f".{mix.format(letter)}") for letter in order):
            continue
        new = names.get_name(_hugging_face(architecture, name), try_suffixes=(".weight", ".bias"))
        assert new, name
        new = new if new.endswith((".weight", ".bias")) else f"{new}.weight"
        if part in TRANSPOSED or part == "time_maa_w2":
            array = array.swapaxes(-1, -2)
        if part == "r_k" or array.shape[:2] == (1, 1):
            array = array.reshape(-1)
        if rescale_every and part == "weight" and name.split(".")[2:4] in (["att", "output"], ["ffn", "value"]):
            array = array / 2 ** (int(name.split(".")[1]) // rescale_every)
        result[new] = array
        if architecture == "rwkv7" and new.startswith("blk.0.time_mix_a"):
            result[new.replace("time_mix_a", "time_mix_v")] = array
    return result


def stored(name: str, array: np.ndarray, kind: str) -> tuple[gguf.GGMLQuantizationType, np.ndarray]:
    """A tensor's type, and its data. All but large matrices are F32."""
    array = np.ascontiguousarray(array, np.float32)
    is_matrix = array.ndim == 2 and min(array.shape) > 32 and "time_mix_first" not in name
    number = gguf.GGMLQuantizationType[kind if is_matrix else "F32"]
    if kind in SCALES and is_matrix:
        return number, random_blocks(kind, array.shape)
    return number, gguf.quantize(array, number)


SCALES = {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
}
"""Where the float16 scales of a block are; the package writes no such blocks."""


def random_blocks(kind: str, shape: tuple[int, ...]) -> np.ndarray:
    block, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    rng = np.random.default_rng(shape[0])
    blocks = rng.integers(0, 256, (shape[0] * shape[1] // block, nbytes), np.uint8)
    for place in SCALES[kind]:
        scales = rng.uniform(0.001, 0.01, len(blocks)).astype(np.float16)
        blocks[:, place : place + 2] = scales[:, None].view(np.uint8)
    return blocks.reshape(shape[0], -1)


def _hugging_face(architecture: str, name: str) -> str:
    name = name.replace(".att.", ".attention.").replace(".ffn.", ".feed_forward.").replace("emb.", "embeddings.")
    if name.startswith("head."):
        return name
    if architecture == "rwkv6":
        return "rwkv." + name.replace("blocks.0.ln0.", "blocks.0.pre_ln.")
    return "model." + name.replace("blocks.0.ln0.", "pre_ln.").replace("blocks.", "layers.")

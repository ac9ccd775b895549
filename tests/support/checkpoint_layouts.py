"""Checkpoints of RWKV-6 and 7 as the programs write them whose files people have: names, shapes and types."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from .build_inputs import huggingface_name, write_json
from .gguf_files import write_gguf
from .rwkv_cpp import write_rwkv_cpp

Tensors = dict[str, np.ndarray]

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
GGUF_KINDS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
RWKV_CPP_KINDS = {"float32": "FP32", "float16": "FP16"}

# convert_safetensors.py of web-rwkv
WEB_RWKV_NAMES = {"time_faaaa": "time_first", "time_maa": "time_mix"}
WEB_RWKV_TRANSPOSED = (
    *("time_mix_w1", "time_mix_w2", "time_decay_w1", "time_decay_w2"),
    *(f"{letter}{half}" for letter in "wagv" for half in "12"),
)

# flash-linear-attention's modeling_rwkv7.py
FLA_NAMES = {
    **{
        f".att.{letter}{i}": f".attn.{letter}_lora.lora.{part}"
        for letter in "wavg"
        for i, part in enumerate(("2.bias", "0.weight", "2.weight"))
    },
    "blocks.": "model.layers.",
    "emb.": "model.embeddings.",
    "head.": "lm_head.",
    "ln_out.": "model.norm.",
    ".ln0.": ".pre_norm.",
    ".ln1.": ".attn_norm.",
    ".ln2.": ".ffn_norm.",
    ".att.ln_x.": ".attn.g_norm.",
    ".att.output.": ".attn.o_proj.",
    **{f".att.{name}.": f".attn.{name[0]}_proj." for name in ("receptance", "key", "value")},
    ".att.": ".attn.",
}
FLA_TRANSPOSED = tuple(f".att.{letter}{half}" for letter in "wavg" for half in "12")


def write_pth(path: Path, tensors: Tensors, dtype: str) -> Path:
    import torch

    torch.save({name: torch.from_numpy(a).to(getattr(torch, dtype)) for name, a in tensors.items()}, path)
    return path


def write_safetensors(path: Path, tensors: Tensors, dtype: str) -> Path:
    save_file({name: array.astype(DTYPES[dtype]) for name, array in tensors.items()}, path)
    return path


def write_web_rwkv(path: Path, tensors: Tensors, dtype: str) -> Path:
    result = {}
    for name, array in tensors.items():
        for old, new in WEB_RWKV_NAMES.items():
            name = name.replace(old, new)
        result[name] = _swapped(array) if any(part in name for part in WEB_RWKV_TRANSPOSED) else array
    return write_safetensors(path, result, dtype)


def write_fla(path: Path, tensors: Tensors, dtype: str) -> Path:
    """A folder."""
    result: Tensors = {}
    for name, array in tensors.items():
        array = _swapped(array) if name.endswith(FLA_TRANSPOSED) else array
        array = array.reshape(-1) if array.shape[:2] == (1, 1) and ".att.x_" not in name else array
        for old, new in FLA_NAMES.items():
            name = name.replace(old, new)
        result[name] = array
    return _folder(path, result, dtype, "rwkv7")


def _first_fla(path: Path, tensors: Tensors, dtype: str) -> Path:
    """A folder of its first version, whose mixes of a layer are one tensor."""
    mixes: dict[str, list[np.ndarray]] = {}
    for name in tensors:
        if ".att.x_" in name:
            mixes.setdefault(f"{name[:-1]}x", []).append(tensors[name][None])
    others = {name: array for name, array in tensors.items() if ".att.x_" not in name}
    return write_fla(path, others | {name: np.concatenate(parts) for name, parts in mixes.items()}, dtype)


def write_remote_code(path: Path, tensors: Tensors, dtype: str) -> Path:
    """A folder of the remote code of RWKV-5 and 6."""
    return _folder(path, {huggingface_name(name): array for name, array in tensors.items()}, dtype, "rwkv6")


def _folder(path: Path, tensors: Tensors, dtype: str, model_type: str) -> Path:
    path.mkdir()
    write_safetensors(path / "model.safetensors", tensors, dtype)
    write_json(path / "config.json", {"model_type": model_type})
    return path


def _swapped(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.swapaxes(-1, -2))


def _gguf(path: Path, tensors: Tensors, dtype: str) -> Path:
    architecture = "rwkv7" if "blocks.0.att.r_k" in tensors else "rwkv6"
    return write_gguf(path, architecture, tensors, GGUF_KINDS[dtype])


def _rwkv_cpp(path: Path, tensors: Tensors, dtype: str) -> Path:
    return write_rwkv_cpp(path, tensors, RWKV_CPP_KINDS[dtype])


LAYOUTS: dict[str, tuple[tuple[str, ...], tuple[str, ...], Callable[[Path, Tensors, str], Path]]] = {
    "pth": (("6", "7", "7a"), tuple(DTYPES), write_pth),
    "safetensors": (("6", "7", "7a"), tuple(DTYPES), write_safetensors),
    "web-rwkv": (("6", "7"), ("float16",), write_web_rwkv),
    "remote code": (("6",), tuple(DTYPES), write_remote_code),
    "fla": (("7",), tuple(DTYPES), write_fla),
    "first fla": (("7",), tuple(DTYPES), _first_fla),
    "gguf": (("6", "7"), tuple(GGUF_KINDS), _gguf),
    "rwkv.cpp": (("6", "7"), tuple(RWKV_CPP_KINDS), _rwkv_cpp),
}
"""The generations that a layout is written of, its types, and what writes tensors of BlinkDL's names that such a type holds."""

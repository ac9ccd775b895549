"""rwkv.cpp's file, as its converter writes it (``python/convert_pytorch_to_ggml.py``): what ``weights.rwkv_cpp`` reads."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..weights.checkpoint import Checkpoint, LazyTensor
from ..weights.rwkv_cpp import FORWARD, FUSED, FUSED_MIXES, MAGIC, STORED_TYPES, VERSIONS
from .output import new_file
from .tensors import BlinkDLTensors, OutputTensor, Progress, silent

FILE_TYPES = {"FP16": "F16", "FP32": "F32"}
NUMBERS = {name: number for number, name in STORED_TYPES.items()}
DTYPES = {"F32": "float32", "F16": "float16"}
ALWAYS_FLOAT32 = ("time_", "k_k", "k_a", "r_k", "x_", "w0", "a0", "v0")
"""How the names of tensors begin that are float32 in every file, as all with one axis are."""


def convert_rwkv_cpp(
    checkpoint: Checkpoint,
    out: Path,
    dtype: str = "FP16",
    *,
    overwrite: bool = False,
    progress: Progress = silent,
) -> None:
    """Write a checkpoint as rwkv.cpp's file; ``dtype``, ``FP16`` or ``FP32``, is that of matrices. Raises UserError for a
    generation that rwkv.cpp does not know, for values that are not finite, or that float16 does not hold, and for an output
    that is there, unless ``overwrite``."""
    if dtype not in FILE_TYPES:
        raise UserError(
            f"rwkv.cpp's files are {' or '.join(FILE_TYPES)}, not {dtype}; its quantize.py makes the others."
        )
    model = BlinkDLTensors.of(checkpoint)
    config = model.config
    if not model.generation.in_rwkv_cpp:
        raise UserError(f"rwkv.cpp does not know RWKV-{config.generation}, which {checkpoint.source} is.")
    tensors = list(_stored(model, FILE_TYPES[dtype]))
    header = (VERSIONS[-1], config.vocab_size, config.hidden_size, config.num_hidden_layers, NUMBERS[FILE_TYPES[dtype]])
    with new_file(out, overwrite) as path, open(path, "wb") as file:
        file.write(MAGIC + struct.pack("<5i", *header))
        for done, tensor in enumerate(tensors, 1):
            name, shape = tensor.name.encode("utf-8"), tensor.shape[::-1]
            number = next(NUMBERS[kind] for kind, dtype in DTYPES.items() if dtype == tensor.dtype)
            file.write(struct.pack("<3i", len(shape), len(name), number))
            file.write(struct.pack(f"<{len(shape)}i", *shape) + name)
            file.write(tensor.bytes())
            progress(done, len(tensors))


def _stored(model: BlinkDLTensors, kind: str) -> Iterator[OutputTensor]:
    tensors = model.tensors
    for name, tensor in tensors.items():
        block, _, part = name.rpartition(".")
        if block.endswith(".att") and part in _MIXES:  # they lie in one tensor, where the first of them was
            if part != _MIXES[0]:
                continue
            name, tensor = f"{block}.{FUSED}", _below_each_other([tensors[f"{block}.{mix}"] for mix in _MIXES])
        yield _output(model, name, tensor, kind)


def _output(model: BlinkDLTensors, name: str, tensor: LazyTensor, kind: str) -> OutputTensor:
    shape, done = model.generation.to_rwkv_cpp(model.config, name, tensor.shape)
    is_wide = len(shape) == 1 or name.rpartition(".")[2].startswith(ALWAYS_FLOAT32)

    def read() -> np.ndarray:
        array = tensor.read()
        return (array if done is None else FORWARD[done](array)).reshape(shape)

    return OutputTensor(name, shape, DTYPES["F32" if is_wide else kind], dataclasses.replace(tensor, read=read))


_MIXES = tuple(f"x_{letter}" for letter in FUSED_MIXES)


def _below_each_other(vectors: list[LazyTensor]) -> LazyTensor:
    shape = (len(vectors), *vectors[0].shape[1:])
    return LazyTensor(shape, vectors[0].dtype, lambda: np.concatenate([vector.read() for vector in vectors]))

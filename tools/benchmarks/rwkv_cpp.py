"""rwkv.cpp through its shared library, and the model files that it reads (its ``rwkv.h`` and
``docs/FILE_FORMAT.md``)."""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rwkv_mlc.artifact.disk import beside
from rwkv_mlc.errors import UserError
from rwkv_mlc.weights import LazyTensor

CHUNK = 64  # tokens at once; RWKV-4 1.5B aborts at 128


def write_model(path: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Write BlinkDL's tensors of generation 4 or 5 as an FP16 file: with the decay, and the bonus of 5.0, after their
    exponentials. Raises UserError for later generations."""
    if not any(name.endswith("time_mix_k") for name in tensors):
        raise UserError(f"{path.name} was not written: files for rwkv.cpp are made of RWKV-4 and RWKV-5 only.")
    has_heads, gated = "blocks.0.att.ln_x.weight" in tensors, "blocks.0.att.gate.weight" in tensors
    layers = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
    with beside(path) as partial, open(partial, "wb") as file:
        file.write(struct.pack("<6i", 0x67676D66, 101, *tensors["emb.weight"].shape, layers, 1))
        for name, tensor in tensors.items():
            array = tensor.read()
            is_time = ".time_" in name
            if is_time:
                array = _time_tensor(name, array.squeeze(), has_heads, gated)
            is_half = array.ndim > 1 and not is_time
            file.write(struct.pack("<3i", array.ndim, len(name), is_half))
            file.write(struct.pack(f"<{array.ndim}i", *array.shape[::-1]) + name.encode())
            file.write(array.astype(np.float16 if is_half else np.float32).tobytes())


def _time_tensor(name: str, array: np.ndarray, has_heads: bool, gated: bool) -> np.ndarray:
    part = name.rsplit(".", 1)[-1]
    if not has_heads:
        return -np.exp(array) if part == "time_decay" else array
    if part == "time_decay":
        array = np.exp(-np.exp(array))
        return array[..., None] if gated else array.reshape(-1, 1, 1)
    if part == "time_first":
        return np.exp(array).reshape(-1, 1, 1)
    return array[..., None] if part == "time_faaaa" else array


def quantize_model(library: Path, source: Path, target: Path, name: str) -> None:
    """Write ``source`` in rwkv.cpp's format ``name``, such as ``Q4_0``; prints a line a tensor. Raises RuntimeError
    when that fails."""
    with beside(target) as partial:
        if not _load(library).rwkv_quantize_model_file(str(source).encode(), str(partial).encode(), name.encode()):
            raise RuntimeError(f"rwkv.cpp could not write {target}.")


class RwkvCpp:
    """A model in the library: ``read`` goes on from the tokens read since ``reset``."""

    def __init__(self, library: Path, model: Path, threads: int):
        self.library, self.weight_bytes = _load(library), _weight_bytes(model)
        self.context = self.library.rwkv_init_from_file(str(model).encode(), threads, 0)
        if not self.context:
            raise RuntimeError(f"rwkv.cpp could not load {model}.")
        self.state = np.zeros(self.library.rwkv_get_state_len(self.context), np.float32)
        self.logits = np.zeros(self.library.rwkv_get_logits_len(self.context), np.float32)
        self.reset()

    def reset(self) -> None:
        self.library.rwkv_init_state(self.context, _pointer(self.state))

    def read(self, tokens: Iterable[int]) -> np.ndarray:
        """Logits after the last of ``tokens``, float32 [V]."""
        ids = np.array(tokens, np.uint32)
        state, logits = _pointer(self.state), _pointer(self.logits)
        if len(ids) == 1:
            done = self.library.rwkv_eval(self.context, int(ids[0]), state, state, logits)
        else:
            pointer = ids.ctypes.data_as(ctypes.POINTER(ctypes.c_uint32))
            done = self.library.rwkv_eval_sequence_in_chunks(
                self.context, pointer, len(ids), CHUNK, state, state, logits
            )
        if not done:
            raise RuntimeError("rwkv.cpp could not read the tokens.")
        return self.logits.copy()


def _pointer(array: np.ndarray):
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))


def _load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path.resolve()))
    floats, context = ctypes.POINTER(ctypes.c_float), ctypes.c_void_p
    signatures = {
        "rwkv_init_from_file": (context, [ctypes.c_char_p, ctypes.c_uint32, ctypes.c_uint32]),
        "rwkv_get_state_len": (ctypes.c_size_t, [context]),
        "rwkv_get_logits_len": (ctypes.c_size_t, [context]),
        "rwkv_init_state": (None, [context, floats]),
        "rwkv_eval": (ctypes.c_bool, [context, ctypes.c_uint32, floats, floats, floats]),
        "rwkv_eval_sequence_in_chunks": (
            ctypes.c_bool,
            [context, ctypes.POINTER(ctypes.c_uint32), ctypes.c_size_t, ctypes.c_size_t, floats, floats, floats],
        ),
        "rwkv_quantize_model_file": (ctypes.c_bool, [ctypes.c_char_p] * 3),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def _weight_bytes(model: Path) -> int:
    """Bytes of a file that one token reads: all but the embedding, which stays FP16 in a quantized file."""
    with open(model, "rb") as file:
        _, _, vocab_size, hidden_size, _, _ = struct.unpack("<6i", file.read(24))
    return model.stat().st_size - 2 * vocab_size * hidden_size


if __name__ == "__main__":
    quantize_model(*map(Path, sys.argv[1:4]), sys.argv[4])

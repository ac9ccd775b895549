"""A PyTorch ``.pth`` without PyTorch, written one tensor after the other.

The archive is what ``torch.save`` writes of a dictionary of tensors (PyTorch's ``torch/serialization.py``): a pickle that
describes them and one uncompressed member per storage. ``torch.save`` itself takes all tensors at once, and nothing that
runs in this package needs PyTorch."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Iterable, Sequence
from itertools import accumulate
from math import prod
from operator import mul
from pathlib import Path

from ..weights.checkpoint import Checkpoint
from .output import new_file
from .tensors import BlinkDLTensors, OutputTensor, Progress, silent

STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
}
ROOT = "model"
ALIGNMENT = 64  # of storages, so that torch.load can map them
LOCAL_HEADER, ZIP64_EXTRA = (
    30,
    20,
)  # bytes of a member's header, without its name, and of the field with its large sizes
PADDING_FIELD = b"FB"  # PyTorch's name of the field that moves a member to a multiple of ALIGNMENT
EPOCH = (1980, 1, 1, 0, 0, 0)  # no times, so that the same tensors give the same bytes


def convert_pth(checkpoint: Checkpoint, out: Path, *, overwrite: bool = False, progress: Progress = silent) -> None:
    """Write the tensors of a checkpoint of any format, in the types in which it holds them, as BlinkDL's ``.pth``;
    quantized ones as float32. Raises UserError for one of no known generation, for values that are not finite, and for an
    output that is there, unless ``overwrite``."""
    model = BlinkDLTensors.of(checkpoint)
    dtypes = model.stored_as(None)
    tensors = [OutputTensor(name, tensor.shape, dtypes[name], tensor) for name, tensor in model.tensors.items()]
    with new_file(out, overwrite) as path:
        write_pth(path, tensors, progress)


def write_pth(path: Path, tensors: Sequence[OutputTensor], progress: Progress = silent) -> None:
    """A ``.pth`` that holds the tensors in their order. Raises UserError as ``OutputTensor.bytes``."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        _add(archive, "data.pkl", _pickled(tensors))
        _add(archive, "byteorder", b"little")
        for key, tensor in enumerate(tensors):
            _add(archive, f"data/{key}", tensor.bytes())
            progress(key + 1, len(tensors))
        _add(archive, "version", b"3\n")


def _add(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    member = zipfile.ZipInfo(f"{ROOT}/{name}", EPOCH)
    start = archive.fp.tell() + LOCAL_HEADER + len(member.filename) + ZIP64_EXTRA + 4  # type: ignore[union-attr]
    padding = -start % ALIGNMENT
    member.extra = struct.pack("<2sH", PADDING_FIELD, padding) + b"Z" * padding
    with archive.open(member, "w", force_zip64=True) as file:
        file.write(data)


def _pickled(tensors: Iterable[OutputTensor]) -> bytes:
    """A dictionary of tensors in the words of PyTorch's pickles, with storages 0, 1, ..., one for each."""
    parts = [pickle.PROTO, b"\x02", pickle.EMPTY_DICT, pickle.MARK]
    for key, tensor in enumerate(tensors):
        parts += [_text(tensor.name), *_tensor(str(key), tensor)]
    return b"".join((*parts, pickle.SETITEMS, pickle.STOP))


def _tensor(key: str, tensor: OutputTensor) -> list[bytes]:
    """``torch._utils._rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())``."""
    strides = tuple(accumulate((1, *tensor.shape[:0:-1]), mul))[::-1]
    storage = (_text("storage"), _global("torch", STORAGES[tensor.dtype]), _text(key), _text("cpu"))
    hooks = _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    arguments = (
        _tuple(*storage, _integer(prod(tensor.shape))) + pickle.BINPERSID,
        _integer(0),
        _tuple(*map(_integer, tensor.shape)),
        _tuple(*map(_integer, strides)),
        pickle.NEWFALSE,
        hooks,
    )
    return [_global("torch._utils", "_rebuild_tensor_v2"), _tuple(*arguments), pickle.REDUCE]


def _tuple(*items: bytes) -> bytes:
    return b"".join((pickle.MARK, *items, pickle.TUPLE))


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    data = text.encode("utf-8")
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def _integer(number: int) -> bytes:
    """LONG1, which holds any."""
    data = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
    return pickle.LONG1 + bytes([len(data)]) + data

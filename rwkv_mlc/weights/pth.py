"""PyTorch's zip checkpoints (``.pth``, ``pytorch_model.bin``) without PyTorch.

The archive holds a pickle that describes the tensors and one uncompressed member per storage, so that a tensor is a
strided view on a part of the file (PyTorch's ``torch/serialization.py``, ``_save`` and ``_load``).
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..errors import UserError
from ..escaping import quoted, shortened
from .checkpoint import LazyTensor

MAGIC = b"PK\x03\x04"
LOCAL_HEADER_SIZE = 30
MOST_AXES = 32
LARGEST_PICKLE = 64 << 20  # bytes; that of the largest models has one of them
STORED_TYPES = {"float64": "<f8", "float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}
OTHER_TYPES = {"int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1}
"""Bytes of the dtypes that no weight has, but an optimizer's counts may have."""

WEIGHTS = ("state_dict", "model_state_dict", "model", "module")
"""Where trainers keep the weights in what they save: Lightning, many loops of one's own, DeepSpeed."""

PLAIN = (bool, int, float, str, type(None))
DEPTH = 4  # dictionaries in one another


class Storage(NamedTuple):
    """A storage of ``size`` bytes: the archive's member ``data/<key>``."""

    dtype: str
    key: str
    size: int


class View(NamedTuple):
    """A tensor: ``offset`` and ``strides`` count elements of ``dtype`` in the storage."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Dtype(NamedTuple):
    name: str


class Rebuild(NamedTuple):
    """A function that a pickle may call. A tuple, since a pickle may also try to set attributes on what it names."""

    function: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)


def _rebuild_tensor(storage: Storage, offset: int, shape: tuple, strides: tuple, *_: Any) -> View:
    return View(storage, storage.dtype, offset, shape, strides)


def _rebuild_tensor_of_dtype(
    storage: Storage, offset: int, shape: tuple, strides: tuple, _grad: bool, _hooks: Any, dtype: Dtype, *_: Any
) -> View:
    return View(storage, dtype.name, offset, shape, strides)


def _ordered_dict() -> OrderedDict:
    """What PyTorch calls before it sets the entries one by one."""
    return OrderedDict()


GLOBALS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): Rebuild(_ordered_dict),
    ("torch", "DoubleStorage"): Dtype("float64"),
    ("torch", "FloatStorage"): Dtype("float32"),
    ("torch", "HalfStorage"): Dtype("float16"),
    ("torch", "BFloat16Storage"): Dtype("bfloat16"),
    ("torch", "LongStorage"): Dtype("int64"),
    ("torch", "IntStorage"): Dtype("int32"),
    ("torch", "ShortStorage"): Dtype("int16"),
    ("torch", "CharStorage"): Dtype("int8"),
    ("torch", "ByteStorage"): Dtype("uint8"),
    ("torch", "BoolStorage"): Dtype("bool"),
    ("torch.storage", "UntypedStorage"): Dtype("uint8"),
    ("torch", "float64"): Dtype("float64"),
    ("torch", "float32"): Dtype("float32"),
    ("torch", "float16"): Dtype("float16"),
    ("torch", "bfloat16"): Dtype("bfloat16"),
    ("torch._utils", "_rebuild_tensor_v2"): Rebuild(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): Rebuild(_rebuild_tensor_of_dtype),
    ("torch._utils", "_rebuild_parameter"): Rebuild(lambda data, *_: data),
}


OPCODES = (
    "PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT BINPUT "
    "LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL BINPERSID REDUCE BUILD"
).split()
"""What a dictionary of tensors, numbers and strings is pickled with, but for the setting of entries."""


_Unpickler: Any = pickle._Unpickler


class RestrictedUnpickler(_Unpickler):
    """Knows ``GLOBALS`` and nothing else: no import takes place, whatever the pickle names. Keys of dictionaries are strings
    and numbers, which a hash does not descend into.

    It is the unpickler that Python has written in Python: that in C makes room for as many objects as a pickle says."""

    dispatch: ClassVar = {code: _Unpickler.dispatch[code] for code in (getattr(pickle, name)[0] for name in OPCODES)}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in GLOBALS:
            raise UserError(
                f"the pickle asks for {shortened(f'{module}.{name}')}, which is refused: a checkpoint may hold only "
                "dictionaries of tensors"
            )
        return GLOBALS[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        _, dtype, key, _, numel = pid
        if not isinstance(dtype, Dtype) or type(key) is not str or type(numel) is not int:
            raise ValueError("a storage of another kind")
        stored = STORED_TYPES.get(dtype.name)
        return Storage(dtype.name, key, numel * (np.dtype(stored).itemsize if stored else OTHER_TYPES[dtype.name]))

    def _set_items(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], dict) or len(items) % 2:
            raise ValueError("entries of no dictionary")
        if not all(isinstance(key, str | int | float) for key in items[::2]):
            raise ValueError("a key of a dictionary that is no string")
        self.stack[-1].update(zip(items[::2], items[1::2]))

    def _load_set_items(self) -> None:
        self._set_items(self.pop_mark())

    def _load_set_item(self) -> None:
        items = self.stack[-2:]
        del self.stack[-2:]
        self._set_items(items)

    dispatch[pickle.SETITEMS[0]] = _load_set_items
    dispatch[pickle.SETITEM[0]] = _load_set_item


class Archive:
    """The members of a zip file as ranges of bytes."""

    def __init__(self, path: Path):
        self.path = path
        self.size = path.stat().st_size
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
        except (zipfile.BadZipFile, EOFError, ValueError, OSError, NotImplementedError) as error:
            raise UserError(f"{path} is truncated or damaged ({error}); download it again.") from None
        self.members = {info.filename: info for info in members}
        if len(self.members) < len(members):
            raise UserError(f"{path} is damaged: it has two members of one name; download it again.")
        roots = [name[: -len("data.pkl")] for name in self.members if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise UserError(f"{path} is a zip file but no PyTorch checkpoint: it has {len(roots)} data.pkl, not one.")
        self.root = roots[0]

    def __contains__(self, name: str) -> bool:
        return self.root + name in self.members

    def locate(self, name: str) -> tuple[int, int]:
        """Where a member's bytes lie in the file: (offset, size)."""
        info = self.members.get(self.root + name)
        if info is None:
            raise UserError(f"{self.path} lacks {name}, which its pickle names; download it again.")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise UserError(f"{self.path} is compressed or encrypted; save it again with torch.save.")
        header = self._bytes(info.header_offset, LOCAL_HEADER_SIZE)
        lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        offset = info.header_offset + LOCAL_HEADER_SIZE + lengths
        if not header.startswith(MAGIC) or offset + info.file_size > self.size:
            raise UserError(f"{self.path} is truncated or damaged at {name}; download it again.")
        return offset, info.file_size

    def read(self, name: str) -> bytes:
        return self._bytes(*self.locate(name))

    def _bytes(self, offset: int, size: int) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(min(max(offset, 0), self.size))
            return file.read(size)


def read_pth(path: Path) -> dict[str, LazyTensor]:
    """The tensors of a PyTorch zip checkpoint under their own names: a dictionary of tensors, which may lie under one of
    ``WEIGHTS`` beside what a trainer notes, and in which plain numbers and texts are passed over.

    Raises UserError for a damaged file, a big-endian one, other contents, weights that are no floats, and a pickle that
    names anything beyond what such dictionaries need; nothing in the pickle is ever run."""
    archive = Archive(path)
    if "byteorder" in archive and archive.read("byteorder") != b"little":
        raise UserError(f"{path} was written on a big-endian machine; save it again on a little-endian one.")
    if (size := archive.locate("data.pkl")[1]) > LARGEST_PICKLE:
        raise UserError(
            f"{path} has a pickle of {size:,} bytes, expected at most {LARGEST_PICKLE:,}; download it again."
        )
    unpickler = RestrictedUnpickler(io.BytesIO(archive.read("data.pkl")))
    try:
        content = unpickler.load()
    except UserError as error:
        raise UserError(f"{path} cannot be read: {error}.") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(
            f"{path} has a damaged pickle ({type(error).__name__}: {shortened(str(error))}); download it again."
        ) from None
    weights = _weights(content, path)
    return {name: _lazy_tensor(archive, name, value) for name, value in weights.items()}


def _weights(content: Any, path: Path) -> dict[Any, Any]:
    """The dictionary of weights in what was saved, without plain values. Raises UserError where there is none, or several."""
    for _ in range(DEPTH):
        if type(content) not in (dict, OrderedDict):
            raise UserError(f"{path} holds no dictionary; expected a dictionary of tensors.")
        entries: dict[Any, Any] = dict(dict.items(content))
        inner = [name for name in WEIGHTS if type(entries.get(name)) in (dict, OrderedDict)]
        if not inner:
            weights = {name: value for name, value in entries.items() if not isinstance(value, PLAIN)}
            if entries and not weights:
                raise UserError(f"{path} holds numbers and texts alone; expected a dictionary of tensors.")
            return weights
        if len(inner) > 1:
            raise UserError(f"{path} holds several models ({', '.join(inner)}); save the weights of one alone.")
        content = entries[inner[0]]
    raise UserError(f"{path} holds dictionaries in one another; expected a dictionary of tensors.")


def _lazy_tensor(archive: Archive, name: Any, value: Any) -> LazyTensor:
    if not isinstance(name, str) or not isinstance(value, View):
        raise UserError(
            f"{archive.path} holds a {type(value).__name__} under {quoted(name)}, expected a dictionary of tensors; "
            "save its dictionary of weights alone."
        )
    if value.dtype in OTHER_TYPES:
        raise UserError(
            f"{archive.path} holds {shortened(name)} as {value.dtype}; expected float64, float32, float16 or bfloat16 weights."
        )
    if not _is_sound(value):
        raise UserError(f"{archive.path} describes the tensor {shortened(name)} wrongly; download it again.")
    stored = np.dtype(STORED_TYPES[value.dtype])
    offset, size = archive.locate(f"data/{value.storage.key}")
    extent = 1 + sum((n - 1) * stride for n, stride in zip(value.shape, value.strides))
    if prod(value.shape) > archive.size:  # elements may share memory
        raise UserError(
            f"{archive.path} is damaged: the tensor {shortened(name)} has more elements than the file bytes; download it "
            "again."
        )
    if (value.offset + extent) * stored.itemsize > min(size, value.storage.size):
        raise UserError(
            f"{archive.path} is damaged: the tensor {shortened(name)} reaches beyond its storage; download it again."
        )
    start = offset + value.offset * stored.itemsize
    strides = tuple(stride * stored.itemsize for stride in value.strides)

    def read() -> np.ndarray:
        # Mapped for this read only: what stays mapped counts as the process's memory.
        flat = np.memmap(archive.path, stored, "r", start, (extent,))
        view = np.lib.stride_tricks.as_strided(flat, value.shape, strides)
        if value.dtype != "bfloat16":
            return np.array(view, np.float64 if value.dtype == "float64" else np.float32, order="C")
        bits = np.array(view, np.uint32, order="C")
        bits <<= 16
        return bits.view(np.float32)

    return LazyTensor(value.shape, value.dtype, read)


def _is_sound(view: View) -> bool:
    """Whether what the pickle says of a tensor has the right types and no negative, empty or too large an axis."""
    return (
        isinstance(view.storage, Storage)
        and view.dtype in STORED_TYPES
        and isinstance(view.shape, tuple)
        and isinstance(view.strides, tuple)
        and len(view.shape) == len(view.strides) <= MOST_AXES
        and all(type(n) is int for n in (view.storage.size, view.offset, *view.shape, *view.strides))
        and min((view.offset, *view.strides)) >= 0
        and all(0 < n < 1 << 40 for n in view.shape)
        and max((view.offset, *view.strides)) < 1 << 60
    )

"""rwkv.cpp's model files, quantized or not.

The format is that of its ``docs/FILE_FORMAT.md``, the values those that ``python/convert_pytorch_to_ggml.py`` writes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..escaping import shortened
from ..models import GENERATIONS, Generation
from .checkpoint import LazyTensor, row_of
from .ggml import FORMATS, Format

MAGIC = struct.pack("<I", 0x67676D66)
VERSIONS = (100, 101)
STORED_TYPES = dict(enumerate("F32 F16 Q4_0 Q4_1 Q4_1_O Q4_2 Q4_3 Q5_0 Q5_1 Q8_0".split()))
"""ggml's names by rwkv.cpp's numbers; ``FORMATS`` has no more of those that ggml gave up in 2023."""

FLOATS = ("F32", "F16")
FUSED, FUSED_MIXES = "x_rwkvag", "rwkvag"
"""A tensor of several vectors, and what they are for."""

ADVICE = "start from its FP32 or FP16 file, or from the .pth"

# What stands for 0, 1 and infinity, whose logarithms are not finite; in float32 they are 0, 1 and its largest number.
NEXT_TO_ZERO, NEXT_TO_ONE, LARGEST = 2.0**-151, 1.0 - 2.0**-26, float(np.finfo(np.float32).max)


def read_rwkv_cpp(path: Path) -> dict[str, LazyTensor]:
    """The tensors of an rwkv.cpp file under BlinkDL's names, with BlinkDL's shapes and values.

    rwkv.cpp stores the decay after its exponentials, the 5.0 bonus after its exponential and both with trailing axes of
    length 1; the inverses are computed in float64. Raises UserError for a damaged file, and for formats that ggml gave up."""
    size = path.stat().st_size
    stored: dict[str, tuple[int, tuple[int, ...], Format]] = {}
    try:
        with open(path, "rb") as file:

            def integers(count: int) -> tuple[int, ...]:
                return struct.unpack(f"<{count}i", file.read(4 * count))

            _, version, _, hidden_size, _, data_type = integers(6)
            _check(version in VERSIONS, f"has format version {version}, expected 100 or 101")
            _format(data_type, version)
            while file.tell() < size:
                dimensions, name_length, data_type = integers(3)
                _check(0 < dimensions <= 4 and 0 < name_length < 256, "is damaged")
                shape = integers(dimensions)[::-1]
                name = file.read(name_length).decode()
                elements, offset = _format(data_type, version), file.tell()
                _check(name not in stored, f"is damaged: it holds {shortened(name)} twice")
                _check(min(shape) > 0, f"is damaged at {shortened(name)}")
                _check(
                    shape[-1] % elements.block == 0,
                    f"holds {shortened(name)} in {elements.name}, whose rows of {shape[-1]} are no blocks of {elements.block}",
                )
                end = offset + elements.nbytes(shape)
                _check(end <= size, f"is truncated or damaged at {shortened(name)}")
                stored[name] = (offset, shape, elements)
                file.seek(end)
    except (struct.error, UnicodeDecodeError):
        raise UserError(f"{path} is truncated or damaged; convert or download it again.") from None
    except UserError as error:
        raise UserError(f"{path} {error}.") from None

    shapes = {name: shape for name, (_, shape, _) in stored.items()}
    described = _blinkdl_tensors(shapes, hidden_size)
    tensors = {
        name: _lazy_tensor(path, offset, shape, elements, *described[name])
        for name, (offset, shape, elements) in stored.items()
    }
    return {name: tensor for stored, whole in tensors.items() for name, tensor in _separate(stored, whole)}


def _separate(name: str, tensor: LazyTensor) -> Iterator[tuple[str, LazyTensor]]:
    """The mixes of RWKV-7, which lie in one tensor."""
    block, _, part = name.rpartition(".")
    if part != FUSED or tensor.shape[0] != len(FUSED_MIXES):
        yield name, tensor
        return
    for i, letter in enumerate(FUSED_MIXES):
        yield f"{block}.x_{letter}", row_of(tensor, i)


def _blinkdl_tensors(
    stored: dict[str, tuple[int, ...]], hidden_size: int
) -> dict[str, tuple[tuple[int, ...], str | None]]:
    """BlinkDL's shapes and what was done to the values, as the latest generation says that recognizes the tensors so; as
    stored where none does, and as to the shape where that has another number of elements."""

    def described(generation: Generation, name: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], str | None]:
        found, done = generation.rwkv_cpp_tensor(name, shape, hidden_size)
        return found if prod(found) == prod(shape) else shape, done

    for generation in reversed(GENERATIONS.values()):
        found = {name: described(generation, name, shape) for name, shape in stored.items()}
        if generation.recognizes({name: shape for name, (shape, _) in found.items()}):
            return found
    return {name: (shape, None) for name, shape in stored.items()}


def _check(condition: bool, problem: str) -> None:
    if not condition:
        raise UserError(f"{problem}; convert or download it again")


def _format(data_type: int, version: int) -> Format:
    """Raises UserError for an unknown one, and for what rwkv.cpp itself does not read any more."""
    _check(data_type in STORED_TYPES, f"has the unknown data type {data_type}")
    name = STORED_TYPES[data_type]
    if name not in FORMATS:
        raise UserError(f"is quantized in {name}, which ggml gave up in 2023; {ADVICE}")
    if name not in FLOATS and version == VERSIONS[0]:
        raise UserError(f"is quantized in {name} of before May 2023, which is another format; {ADVICE}")
    return FORMATS[name]


def _lazy_tensor(
    path: Path, offset: int, stored: tuple[int, ...], elements: Format, shape: tuple[int, ...], done: str | None
) -> LazyTensor:
    def read() -> np.ndarray:
        array = elements.read(path, offset, stored)
        return (array if done is None else INVERSES[done](array.astype(np.float64))).reshape(shape)

    return LazyTensor(shape, elements.name, read)


# A value out of range gives NaN, which the conversion refuses by the tensor's name.


def _log(array: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.log(np.where(array == 0.0, NEXT_TO_ZERO, array))


def _invert_head_decay(decay: np.ndarray) -> np.ndarray:
    """w from exp(-exp(w))."""
    return _log(-_log(np.where(decay == 1.0, NEXT_TO_ONE, decay)))


def _invert_channel_decay(decay: np.ndarray) -> np.ndarray:
    """w from -exp(w)."""
    return _log(np.where(decay == -np.inf, LARGEST, -decay))


INVERSES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "exp": _log,
    "exp(-exp)": _invert_head_decay,
    "-exp": _invert_channel_decay,
    "transpose": lambda array: array.swapaxes(-1, -2),
}
"""BlinkDL's values in float64 from rwkv.cpp's, by what it did to them."""


def _exp(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore"):
        return np.exp(array.astype(np.float64))


FORWARD: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "exp": _exp,
    "exp(-exp)": lambda array: _exp(-_exp(array)),
    "-exp": lambda array: -_exp(array),
    "transpose": lambda array: array.swapaxes(-1, -2),
}
"""rwkv.cpp's values from BlinkDL's, computed in float64."""

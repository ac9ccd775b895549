"""What every checkpoint reader returns: lazy tensors under BlinkDL's names."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..quantization.group import GroupForm
from ..special_tokens import SpecialTokens


@dataclass(frozen=True)
class Packed:
    """A matrix that is quantized in a form of ours: ``read()`` returns ``GroupForm``'s q_weight and q_scale, of the parameter
    that the matrix becomes, after what its generation does to the values."""

    form: GroupForm
    read: Callable[[], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is still in its file.

    ``dtype`` is the stored one (``float64``, ``float32``, ``float16``, ``bfloat16`` or a quantized one of ``ggml.FORMATS``);
    ``read()`` returns a new C-contiguous float32 array of ``shape``, or float64 where that is stored or the reader had to
    compute the value. ``packed`` is what there is to be taken over as it is.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]
    packed: Packed | None = None


def row_of(tensor: LazyTensor, index: int) -> LazyTensor:
    """One of several along the first axis."""
    return dataclasses.replace(tensor, shape=tensor.shape[1:], read=lambda: tensor.read()[index])


@dataclass(frozen=True)
class MergedLora:
    """A LoRA that is in a checkpoint's tensors: its ``file``, the ``alpha`` that it is scaled by, how many ``matrices`` have a
    product of it added and how many ``whole`` tensors it replaces; ``by_root`` says that it is divided by its rank's root."""

    file: Path
    alpha: float
    matrices: int
    whole: int
    by_root: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of any format: ``tensors`` under the names of a BlinkDL ``.pth`` (``blocks.0.att.key.weight``)
    with BlinkDL's values (decay before its exponentials, matrices [out, in]).

    ``source`` is what the user named; ``files`` are the files that hold the tensors, in order; ``tokenizer_files`` are
    vocabulary files found beside them. ``head_size_divisor``, ``context_length`` (tokens), ``layer_norm_epsilon`` and
    ``rescale_every`` (layers) are set where a configuration says them, and ``stated`` is what it says, by
    ``config.json``'s names, that the tensors say too. ``tokens`` are the special tokens that it names. ``lora`` is in the
    tensors, and is not among the files. ``quantization`` is the scheme that the values were rounded to, the only one
    for which they are whole; ``warning`` says what else they have lost.
    """

    name: str
    format: str
    source: str
    tensors: dict[str, LazyTensor]
    files: list[Path] = field(default_factory=list)
    tokenizer_files: list[Path] = field(default_factory=list)
    head_size_divisor: int | None = None
    context_length: int | None = None
    layer_norm_epsilon: float | None = None
    rescale_every: int | None = None
    stated: Mapping[str, int | str] = field(default_factory=dict)
    tokens: SpecialTokens = field(default_factory=SpecialTokens)
    lora: MergedLora | None = None
    quantization: str | None = None
    warning: str | None = None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    def sha256(self) -> str:
        """Hash of the files' bytes, in order; of the name where there is no file (random weights); and of the LoRA's bytes and
        scale after them."""
        digest = hashlib.sha256(b"" if self.files else self.source.encode())
        for path in [*self.files, *([self.lora.file] if self.lora else [])]:
            with open(path, "rb") as file:
                while chunk := file.read(1 << 24):
                    digest.update(chunk)
        if self.lora:
            digest.update(f"lora alpha {self.lora.alpha}{' by root' * self.lora.by_root}".encode())
        return digest.hexdigest()

"""Readers of checkpoints: whatever the format, lazy tensors under BlinkDL's names."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import UserError
from ..regular_files import size_of
from . import hub, huggingface, pth, rwkv_cpp
from .checkpoint import Checkpoint, LazyTensor

__all__ = ["Checkpoint", "LazyTensor", "open_checkpoint"]

LEGACY_TORCH_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
SURROGATE = re.compile("[\ud800-\udfff]")  # stands for a byte of a path that is not UTF-8
WORLD_VOCABULARY_LINE = re.compile(rb"\d+ .+ \d+\r?\n")


def open_checkpoint(source: str, revision: str | None = None) -> Checkpoint:
    """Open a file (``.pth``, ``.bin``, ``.safetensors``, whatever its name), a folder or a hub repository.

    Formats are told apart by content. ``revision`` is a branch, tag or commit of a hub repository. No tensor is read yet.
    Raises UserError when the source is missing, damaged, of an unknown format, or would run code."""
    if SURROGATE.search(source):
        raise UserError(f"The path {source} is not UTF-8; rename the file or folder.")
    path, name = Path(source), Path(os.path.abspath(source)).name  # noqa: PTH100  links keep their names
    if not path.exists():
        in_a_folder = path.parent != Path() and path.parent.is_dir()
        if in_a_folder or not hub.is_repository(source):
            raise UserError(f"There is no file or folder {source}; give a checkpoint's path, or owner/name on the hub.")
        path = hub.download(source, revision)
        name = path.name if path.is_file() else name
    files = huggingface.weight_files(path) if path.is_dir() else [path]

    tensors: dict[str, LazyTensor] = {}
    for file in files:
        file_format, found = read_file(file)
        tensors |= found
    tensors = huggingface.blinkdl_names(tensors)
    config = huggingface.FolderConfig()
    if path.is_dir() and files[0].suffix != ".pth":
        file_format, config = "huggingface", huggingface.read_config(path)
    if config.tie_word_embeddings and "emb.weight" in tensors:
        tensors.setdefault("head.weight", tensors["emb.weight"])
    return Checkpoint(
        name=name if path.is_dir() else re.sub(r"\.(pth|pt|bin|safetensors)$", "", name),
        format=file_format,
        source=source,
        tensors=tensors,
        files=files,
        tokenizer_files=tokenizer_files(path if path.is_dir() else path.parent),
        head_size_divisor=config.head_size_divisor,
        context_length=config.context_length,
    )


def read_file(path: Path) -> tuple[str, dict[str, LazyTensor]]:
    """A file's format, told by its first bytes, and its tensors under their own names."""
    try:
        size_of(path)
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    if head.startswith(pth.MAGIC):
        return "pth", pth.read_pth(path)
    if head.startswith(rwkv_cpp.MAGIC):
        return "rwkv.cpp", rwkv_cpp.read_rwkv_cpp(path)
    if head[8:9] == b"{":
        return "safetensors", huggingface.read_safetensors(path)
    if head.startswith(LEGACY_TORCH_MAGIC) or head[257:262] == b"ustar":
        raise UserError(
            f"{path} is in PyTorch's old format; save it again with a newer PyTorch: "
            "torch.save(torch.load('old.pth', weights_only=True), 'new.pth')."
        )
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`.")
    raise UserError(
        f"{path} is no checkpoint ({'first bytes ' + head[:8].hex(' ') if head else 'it is empty'}); expected a "
        "PyTorch .pth or .bin, a safetensors or an rwkv.cpp file."
    )


def tokenizer_files(folder: Path) -> list[Path]:
    """The vocabularies in a folder: World-format ``*vocab*.txt``, ``20B_tokenizer.json``, ``tokenizer.json``."""
    found = [path for path in sorted(folder.glob("*vocab*.txt")) if _is_world_vocabulary(path)]
    return found + [folder / name for name in ("20B_tokenizer.json", "tokenizer.json") if (folder / name).is_file()]


def _is_world_vocabulary(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return WORLD_VOCABULARY_LINE.fullmatch(file.readline(1024)) is not None

"""Readers of checkpoints: whatever the format, lazy tensors under BlinkDL's names."""

from __future__ import annotations

import os
import re
from io import BytesIO
from pathlib import Path
from typing import Literal, NamedTuple

from ..errors import UserError
from ..escaping import shortened
from ..regular_files import check_name, size_of
from ..text_encoding import lines_in_utf8
from . import gguf, hub, huggingface, mlc, pth, rwkv_cpp
from .adapters import MODEL, content_of
from .checkpoint import Checkpoint, LazyTensor
from .folder import Facts, read_facts

__all__ = ["Checkpoint", "LazyTensor", "is_on_hub", "open_checkpoint"]

TOKENIZER_MODEL = "tokenizer_model"  # mlc_llm's form of a World vocabulary
LEGACY_TORCH_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
SURROGATE = re.compile("[\ud800-\udfff]")  # stands for a byte of a path that is not UTF-8
BLINKDL_SUFFIXES = (".pth", ".st", ".gguf")  # of files that need no folder around them
CONTEXT = re.compile("[-_]ctx([1-9][0-9]{0,6})(k?)(?![0-9a-z])", re.IGNORECASE)
WORLD_VOCABULARY_LINE = re.compile(rb"\d+ .+ \d+")


def open_checkpoint(source: str, revision: str | None = None) -> Checkpoint:
    """Open a file (``.pth``, ``.bin``, ``.safetensors``, ``.gguf``, whatever its name), a folder or a hub repository.

    Formats are told apart by content; a folder with ``mlc-chat-config.json`` and an index of tensors is one that mlc_llm
    converted. A folder's weights are those that transformers would load; what its ``config.json``
    and ``generation_config.json`` state holds for a file in it, too, and the length of the context may be in the name alone.
    ``revision`` is a branch, tag or commit of a hub repository. Of the tensors only a head that is stored beside the embedding
    it is tied to is read yet. Raises UserError when the source is missing, damaged, of an unknown format, or would run
    code."""
    if SURROGATE.search(source):
        raise UserError(f"The path {source} is not UTF-8; rename the file or folder.")
    try:
        check_name(Path(source))
    except OSError as error:
        raise UserError(f"{shortened(source)} is no path ({error.strerror}); give a checkpoint's.") from None
    path, name = Path(source), Path(os.path.abspath(source))  # noqa: PTH100  links keep their names
    model = name.name if path.is_dir() else name.parent.name
    if not path.exists():
        if not is_on_hub(source):
            raise UserError(f"There is no file or folder {source}; give a checkpoint's path, or owner/name on the hub.")
        path, model = hub.download(source, revision), hub.model_name(source)
        name = path
    elif revision is not None:
        raise UserError(f"{source} is here, so that it has no revision {revision}; leave --revision out.")
    folder = path if path.is_dir() else path.parent
    if mlc.is_converted(path):
        vocabularies = [*tokenizer_files(path), *path.glob(TOKENIZER_MODEL)]
        return mlc.read_converted(path, name.parent.name if model == mlc.PARAMS else model, vocabularies)
    weights = huggingface.weights_of_folder(path) if path.is_dir() else huggingface.weights_of_file(path)

    content, tensors = FileContent("", {}), dict[str, LazyTensor]()
    for file in weights.files:
        content = read_file(file)
        tensors |= weights.of_file(file, content.tensors)
    if (held := content_of(tensors)) not in (MODEL, None):
        raise UserError(f"{source} is {held.what}, not a model; {held.advice}.")
    weights.check_complete(tensors)
    tensors = huggingface.blinkdl_names(tensors)
    own = path.is_dir() or weights.named_for_folder
    facts = read_facts(folder, own)
    file_format = content.format
    if path.is_dir() and weights.files[0].suffix not in BLINKDL_SUFFIXES:
        file_format = "huggingface"
        if facts is None:
            raise UserError(
                f"{folder} has no config.json; expected a Hugging Face folder, or give the weight file's path."
            )
    facts = facts or Facts()
    epsilon = facts.config.layer_norm_epsilon
    if facts.config.tie_word_embeddings:
        tensors = huggingface.with_tied_head(tensors, folder)
    title = model if own else re.sub(r"\.(pth|pt|bin|safetensors|st|gguf)$", "", name.name)
    return Checkpoint(
        name=title,
        format=file_format,
        source=source,
        tensors=tensors,
        files=weights.files,
        tokenizer_files=tokenizer_files(folder),
        head_size_divisor=facts.config.head_size_divisor,
        context_length=facts.config.context_length or context_in(title),
        layer_norm_epsilon=content.layer_norm_epsilon if epsilon is None else epsilon,
        rescale_every=None if facts.config.rescale_every is None else max(facts.config.rescale_every, 0),
        stated=facts.stated,
        tokens=facts.tokens,
    )


def is_on_hub(source: str) -> bool:
    """Whether it reads as the name of a repository, and is nothing here, where it would be in a folder that is."""
    path = Path(source)
    in_a_folder = path.parent != Path() and path.parent.is_dir()
    return hub.is_repository(source) and not path.exists() and not in_a_folder


def context_in(name: str) -> int | None:
    """The tokens of the texts that a model was trained on, where its name says them: 8192 in ``rwkv7-g1d-1.5b-ctx8192``."""
    found = CONTEXT.search(name)
    return int(found[1]) * (1024 if found[2] else 1) if found else None


class FileContent(NamedTuple):
    """A file's ``format``, and its ``tensors`` under their own names; the epsilon of the layer norms where it says that."""

    format: str
    tensors: dict[str, LazyTensor]
    layer_norm_epsilon: float | None = None


def read_file(path: Path, what: Literal["checkpoint", "LoRA", "tuned state"] = "checkpoint") -> FileContent:
    """What a file holds, whose format is told by its first bytes. Raises UserError for one of no known format, which is then no
    ``what``."""
    try:
        size_of(path)
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    if head.startswith(pth.MAGIC):
        return FileContent("pth", pth.read_pth(path))
    if head.startswith(rwkv_cpp.MAGIC):
        return FileContent("rwkv.cpp", rwkv_cpp.read_rwkv_cpp(path))
    if head.startswith(gguf.MAGIC):
        return FileContent("gguf", *gguf.read_gguf(path))
    if head[8:9] == b"{":
        return FileContent("safetensors", huggingface.read_safetensors(path))
    if head.startswith(LEGACY_TORCH_MAGIC) or head[257:262] == b"ustar":
        raise UserError(
            f"{path} is in PyTorch's old format; save it again with a newer PyTorch: "
            "torch.save(torch.load('old.pth', weights_only=True), 'new.pth')."
        )
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`.")
    found = f"first bytes {head[:8].hex(' ')}" if head else "it is empty"
    others = ", safetensors, GGUF or rwkv.cpp" if what == "checkpoint" else " or safetensors"
    raise UserError(f"{path} is no {what} ({found}); expected a PyTorch (.pth, .bin){others} file.")


def tokenizer_files(folder: Path) -> list[Path]:
    """The vocabularies in a folder: World-format ``*vocab*.txt``, ``20B_tokenizer.json``, ``tokenizer.json``."""
    found = [path for path in sorted(folder.glob("*vocab*.txt")) if _is_world_vocabulary(path)]
    return found + [folder / name for name in ("20B_tokenizer.json", "tokenizer.json") if (folder / name).is_file()]


def _is_world_vocabulary(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        beginning = BytesIO(file.read(4096))
    return WORLD_VOCABULARY_LINE.fullmatch(next(lines_in_utf8(beginning, str(path)), b"")) is not None

"""Tokenizers of RWKV models: which vocabulary a model takes, loading it, and copying it into an artifact."""

from __future__ import annotations

import math
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import msgpack

from ..config import RWKVConfig
from ..errors import UserError
from ..text_encoding import in_utf8
from .base import END_OF_TEXT, Tokenizer
from .pile import PileTokenizer
from .world import PAD, TOKENIZER_MODEL, WorldTokenizer

if TYPE_CHECKING:
    from ..weights.checkpoint import Checkpoint

__all__ = ["END_OF_TEXT", "Tokenizer", "check_vocabulary", "find_vocabulary", "load_tokenizer", "write_tokenizer_files"]

WORLD_VOCAB_SIZE = 65536
PILE_VOCAB_SIZE = 50277

# Heads are rounded up to a multiple of so many rows (Megatron's --make-vocab-size-divisible-by, times the GPUs that share
# them): World 65530 ids of 65536, Pile 50277 of 50277, 50304 or 50432. Below PADDING any number of rows may stand for nothing.
PADDING, LARGEST_MULTIPLE = 128, 1024


def load_tokenizer(files: Path | Iterable[Path]) -> Tokenizer:
    """The tokenizer of a vocabulary file, of a folder, or of the files of an artifact.

    A single file is a ``tokenizer.json`` if it ends in ``.json``, else a World vocabulary. Among several, or in a
    folder, a World vocabulary (``*vocab*.txt``, else mlc_llm's ``tokenizer_model``) goes before a ``*tokenizer.json``;
    the others are passed over. Raises UserError when there is no vocabulary or it is not well formed."""
    if isinstance(files, Path):
        files = sorted(files.iterdir()) if files.is_dir() else [files]
    files = list(files)
    vocabularies = files if len(files) == 1 else _vocabularies(files)
    for path in vocabularies:
        return PileTokenizer(path) if path.suffix == ".json" else WorldTokenizer(path)
    found = ", ".join(path.name for path in files) or "none"
    raise UserError(f"No vocabulary (*vocab*.txt or tokenizer.json) among the tokenizer files; found {found}.")


def find_vocabulary(checkpoint: Checkpoint, config: RWKVConfig, given: Path | None = None) -> list[Path]:
    """The vocabulary file for a model: that of ``given`` (a file or folder), else of those beside the checkpoint, which fits;
    else the World vocabulary of the installed ``pyrwkv_tokenizer`` for a model of 65536 tokens.

    Raises UserError when there is none, none fits, or several different ones do."""
    if given is not None and not given.is_dir():
        tokenizer = load_tokenizer(given)
        check_vocabulary(tokenizer, config.vocab_size)
        return tokenizer.files
    candidates = _vocabularies(checkpoint.tokenizer_files if given is None else sorted(given.iterdir()))
    if given is not None and not candidates:
        load_tokenizer(given)  # says what the folder holds instead
    fitting: list[Tokenizer] = []
    refusals: list[UserError] = []
    for path in candidates:
        try:
            tokenizer = load_tokenizer(path)
            check_vocabulary(tokenizer, config.vocab_size)
        except VocabularySizeError as error:
            # Another model's, as long as it may not be this one's own in the format of the vocabulary that is installed.
            if given is not None or config.vocab_size != WORLD_VOCAB_SIZE or tokenizer.kind == "world":
                refusals.append(error)
        except UserError as error:
            refusals.append(error)
        else:
            fitting.append(tokenizer)
    if len({tokenizer.definition for tokenizer in fitting}) > 1:
        names = ", ".join(str(tokenizer.files[0]) for tokenizer in fitting)
        raise UserError(
            f"Several vocabularies fit a model of {config.vocab_size} tokens: {names}; name the model's own with "
            "--tokenizer PATH."
        )
    if fitting:
        return fitting[0].files
    if refusals:
        raise refusals[0]
    if config.vocab_size == WORLD_VOCAB_SIZE:
        return [Path(str(resources.files("pyrwkv_tokenizer") / "rwkv_vocab_v20230424.txt"))]
    wanted = "20B_tokenizer.json" if config.vocab_size == PILE_VOCAB_SIZE else "*vocab*.txt or tokenizer.json"
    raise UserError(
        f"No vocabulary found for {checkpoint.name} with its {config.vocab_size} tokens; "
        f"put its {wanted} beside the checkpoint, or name the file with --tokenizer PATH."
    )


class VocabularySizeError(UserError):
    """A vocabulary is of another size than the model."""


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raise VocabularySizeError unless the ids lie below ``vocab_size`` and leave no more above them than rounding up to
    ``PADDING`` or a usual multiple does."""
    needed = tokenizer.max_id + 1
    multiple = min(math.gcd(vocab_size, LARGEST_MULTIPLE), needed // 8)
    if not 0 <= vocab_size - needed < max(PADDING, multiple):
        raise VocabularySizeError(
            f"The vocabulary {tokenizer.files[0]} has ids up to {needed - 1}, which does not fit a model of "
            f"{vocab_size} tokens; name the model's own with --tokenizer PATH."
        )


def write_tokenizer_files(tokenizer_files: Iterable[Path], params_dir: Path, vocab_size: int) -> list[str]:
    """Copy a model's vocabulary into the ``params`` folder of an artifact and return the names written.

    A World vocabulary becomes ``rwkv_vocab.txt``, which ``load_tokenizer`` reads, and ``tokenizer_model``, which
    mlc_llm reads: a msgpack map from each of the ``vocab_size`` ids to its bytes. There id 0 is ``<|endoftext|>``,
    which its grammar engine takes for the end, and every id without text has a text of its own, since an empty one
    could be sampled for ever. A ``tokenizer.json`` keeps that name, and the two kinds never lie side by side, since
    mlc_llm prefers it.
    """
    tokenizer = load_tokenizer(tokenizer_files)
    check_vocabulary(tokenizer, vocab_size)
    if tokenizer.kind == "pile":
        _copy(tokenizer.files[0], params_dir / "tokenizer.json")
        return ["tokenizer.json"]
    if isinstance(tokenizer, WorldTokenizer) and tokenizer.files[0].name == TOKENIZER_MODEL:
        (params_dir / "rwkv_vocab.txt").write_text(tokenizer.lines(), encoding="utf-8")
    else:
        _copy(tokenizer.files[0], params_dir / "rwkv_vocab.txt")
    texts = {token: tokenizer.tokens.get(token, PAD % token) for token in range(vocab_size)}
    texts[END_OF_TEXT] = b"<|endoftext|>"
    (params_dir / TOKENIZER_MODEL).write_bytes(msgpack.packb(texts))
    return ["rwkv_vocab.txt", TOKENIZER_MODEL]


def _copy(vocabulary: Path, target: Path) -> None:
    """In UTF-8, whatever the original is in: other engines know nothing of marks."""
    target.write_bytes(in_utf8(vocabulary.read_bytes(), vocabulary))


def _vocabularies(files: Iterable[Path]) -> list[Path]:
    files = list(files)
    world = [path for path in files if path.suffix == ".txt" and "vocab" in path.name]
    pile = [path for path in files if path.name.endswith("tokenizer.json")]
    return (world or [path for path in files if path.name == TOKENIZER_MODEL]) + pile

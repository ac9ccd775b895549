"""The tokenizer of the Pile and Raven models, GPT-NeoX's byte-level BPE, and any other in a ``tokenizer.json``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import tokenizers
from pydantic import StringConstraints

from ..errors import UserError
from ..escaping import listed, quoted, shortened
from ..regular_files import read_bytes
from ..text_encoding import in_utf8
from ..typed_json import Schema, read
from .base import END_OF_TEXT, Tokenizer

LARGEST_FILE = 64 << 20  # bytes; the Pile's own has two of them

_ESCAPED_BYTES = re.compile("([\udc80-\udcff])")

DROPPING = ("BertPreTokenizer", "CharDelimiterSplit", "Metaspace", "Whitespace", "WhitespaceSplit")
"""Pre-tokenizers after which the spaces of a text are lost, or are other characters."""


LARGEST_ID = 1 << 20
"""More tokens than any model has; the library goes through all ids below the largest."""


class PileTokenizer(Tokenizer):
    kind = "pile"

    def __init__(self, path: Path):
        """Read a byte-level BPE ``tokenizer.json``, such as ``20B_tokenizer.json``. Raises UserError for another file, and
        for a tokenizer of another kind, whose tokens are no pieces of a text.

        A special token in a text is that token, and decodes to its own text but for id 0, the end of text.
        """
        try:
            data = in_utf8(read_bytes(path, LARGEST_FILE), path)
        except FileNotFoundError:
            raise UserError(f"The vocabulary {path} does not exist.") from None
        except OSError as error:
            raise UserError(f"Cannot read the vocabulary {path}: {error.strerror}.") from None
        try:
            self._bpe = tokenizers.Tokenizer.from_buffer(data)
        except BaseException as error:  # the library raises the bare class whatever is wrong, or panics
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise UserError(f"{path} is not a tokenizer.json: {shortened(str(error))}.") from None
        largest = max(self._bpe.get_vocab(with_added_tokens=True).values(), default=0)
        if largest > LARGEST_ID:
            raise UserError(
                f"{path} gives a token the id {largest:,}, expected at most {LARGEST_ID:,}: it is damaged; download it again."
            )
        if problem := _why_not_byte_level(self._bpe):
            raise UserError(
                f"{path} is not a byte-level BPE vocabulary: {problem}; expected one like 20B_tokenizer.json, or a World "
                "vocabulary."
            )
        _check_config(path.with_name("tokenizer_config.json"), self._bpe)
        self._bpe.no_truncation()
        self._bpe.no_padding()
        added, own = self._bpe.get_added_tokens_decoder(), self._bpe.get_vocab(with_added_tokens=False)
        tokens: dict[int, bytes] = {}
        for text, token in self._bpe.get_vocab(with_added_tokens=True).items():
            is_byte = text in _BYTE_OF and text in own
            if token in added and not is_byte:
                tokens[token] = text.encode("utf-8")
            elif set(text) <= _BYTE_OF.keys():
                tokens[token] = bytes(_BYTE_OF[character] for character in text)
            else:
                raise UserError(
                    f"{path} is not a byte-level BPE vocabulary: its token {quoted(text)} does not spell bytes."
                )
        if END_OF_TEXT in added and added[END_OF_TEXT].special:
            del tokens[END_OF_TEXT]
        super().__init__([path], tokens)
        self._id_of = {data: token for token, data in tokens.items()}
        self._added = [token.content for token in added.values()]
        self._unknown = {byte for byte in range(256) if bytes([byte]) not in self._id_of}

    @property
    def definition(self) -> str:
        """All that the tokenizer does, in one form whatever that of the file."""
        return self._bpe.to_str()

    def encode_bytes(self, data: bytes) -> list[int]:
        """The BPE of each run of UTF-8, normalized as the file says (20B: NFC), and single-byte tokens for what is not.

        A text that ends in a blank line ends in two newline tokens, not in the one for a pair: that is how the blank
        line encodes when more text follows, which the models know and which a later turn brings (ChatRWKV pull request
        110, ``fix_tokens`` in v2/chat.py).
        """
        tokens: list[int] = []
        for run in _ESCAPED_BYTES.split(data.decode("utf-8", "surrogateescape")):
            if _ESCAPED_BYTES.fullmatch(run):
                tokens.append(self._single(run.encode("utf-8", "surrogateescape")))
            elif run:
                self._check(run)
                tokens += self._bpe.encode(run, add_special_tokens=False).ids
        if tokens and tokens[-1] == self._id_of.get(b"\n\n") and b"\n" in self._id_of:
            tokens[-1:] = [self._single(b"\n")] * 2
        return tokens

    def _check(self, text: str) -> None:
        """Raise UserError for bytes that the library would pass over, as the vocabulary has no token for them."""
        if not self._unknown:
            return
        for content in self._added:
            text = text.replace(content, "")
        if self._bpe.normalizer is not None:
            text = self._bpe.normalizer.normalize_str(text)
        for byte in text.encode("utf-8"):
            if byte in self._unknown:
                self._single(bytes([byte]))

    def _single(self, byte: bytes) -> int:
        if byte not in self._id_of:
            raise UserError(
                f"The vocabulary {self.files[0].name} has no token for byte 0x{byte.hex()}; leave it out of the text."
            )
        return self._id_of[byte]


def _why_not_byte_level(tokenizer: tokenizers.Tokenizer) -> str | None:
    """What keeps a tokenizer's tokens from being pieces of the text's bytes; None where nothing does."""
    state = json.loads(tokenizer.to_str())
    model = state["model"]
    if model["type"] != "BPE":
        return f"its model is {model['type']}"
    for name in ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(name):
            return f"its model has {name} {model[name]!r}"
    steps = [*_steps(state["normalizer"]), *_steps(state["pre_tokenizer"])]
    if not any(step["type"] == "ByteLevel" for step in steps):
        return f"it prepares text with {_names(steps)}, without ByteLevel"
    dropping = [s for s in steps if s["type"] in DROPPING or s.get("behavior") == "Removed"]
    if dropping:
        return f"it loses parts of a text with {_names(dropping)}"
    decoders = _steps(state["decoder"])
    if any(step["type"] not in ("ByteLevel", "Fuse") for step in decoders):
        return f"it decodes with {_names(decoders)}"
    bare, whole = (tokenizer.encode("a", add_special_tokens=add).ids for add in (False, True))
    if bare != whole:
        return f"its post-processor adds tokens to every text (ids {whole} for 'a')"
    return None


TokenId = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")]


class AddedToken(Schema):
    content: str


class TokenizerConfig(Schema):
    """``tokenizer_config.json``, whose added tokens transformers adds to those of ``tokenizer.json``."""

    added_tokens_decoder: dict[TokenId, AddedToken] | None = None


def _check_config(path: Path, tokenizer: tokenizers.Tokenizer) -> None:
    if not path.is_file():
        return
    added = read(TokenizerConfig, path, "correct it, or download it again").added_tokens_decoder or {}
    foreign = [
        f"{id_} ({token.content!r})" for id_, token in added.items() if tokenizer.id_to_token(int(id_)) != token.content
    ]
    if foreign:
        raise UserError(
            f"{path} adds tokens that its tokenizer.json does not have: {listed(foreign)}; save the tokenizer again with "
            "transformers, which writes them into both."
        )


def _steps(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The normalizers, pre-tokenizers or decoders that are applied one after the other."""
    return list(_flat(part)) if part else []


def _flat(part: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if part["type"] != "Sequence":
        yield part
        return
    for key in ("normalizers", "pretokenizers", "decoders"):
        for inner in part.get(key, ()):
            yield from _flat(inner)


def _names(steps: list[dict[str, Any]]) -> str:
    return ", ".join(step["type"] for step in steps) or "nothing"


def _printable_stand_ins() -> dict[str, int]:
    """GPT-2's table: a printable byte stands for itself, the others for the characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _printable_stand_ins()

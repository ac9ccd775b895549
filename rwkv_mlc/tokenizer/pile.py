"""The tokenizer of the Pile and Raven models: GPT-NeoX's byte-level BPE, from a ``tokenizer.json``."""

from __future__ import annotations

import re
from pathlib import Path

import tokenizers

from ..errors import UserError
from ..escaping import shortened
from ..regular_files import read_bytes
from .base import END_OF_TEXT, Tokenizer

LARGEST_FILE = 64 << 20  # bytes; the Pile's own has two of them

_ESCAPED_BYTES = re.compile("([\udc80-\udcff])")


class PileTokenizer(Tokenizer):
    kind = "pile"

    def __init__(self, path: Path):
        """Read a byte-level BPE ``tokenizer.json``, such as ``20B_tokenizer.json``. Raises UserError for another file.

        Special tokens are control marks: text never encodes to them, and all but id 0, the end of text, count as
        padding.
        """
        try:
            data = read_bytes(path, LARGEST_FILE)
        except FileNotFoundError:
            raise UserError(f"The vocabulary {path} does not exist.") from None
        except OSError as error:
            raise UserError(f"Cannot read the vocabulary {path}: {error.strerror}.") from None
        try:
            self._bpe = tokenizers.Tokenizer.from_buffer(data)
        except Exception as error:  # the library raises the bare class, whatever is wrong
            raise UserError(f"{path} is not a tokenizer.json: {shortened(str(error))}.") from None
        self._bpe.encode_special_tokens = True
        added = self._bpe.get_added_tokens_decoder()
        tokens = {}
        for text, token in self._bpe.get_vocab(with_added_tokens=True).items():
            if token in added:
                if not added[token].special:
                    tokens[token] = text.encode("utf-8")
            elif set(text) <= _BYTE_OF.keys():
                tokens[token] = bytes(_BYTE_OF[character] for character in text)
            else:
                raise UserError(
                    f"{path} is not a byte-level BPE vocabulary: its token {shortened(repr(text))} does not spell bytes."
                )
        super().__init__([path], tokens)
        self._id_of = {data: token for token, data in self.tokens.items() if token != END_OF_TEXT}

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
                tokens += self._bpe.encode(run, add_special_tokens=False).ids
        if tokens and tokens[-1] == self._id_of.get(b"\n\n"):
            tokens[-1:] = [self._single(b"\n")] * 2
        return tokens

    def _single(self, byte: bytes) -> int:
        if byte not in self._id_of:
            raise UserError(
                f"The vocabulary {self.files[0].name} has no token for byte 0x{byte.hex()}; give text in UTF-8."
            )
        return self._id_of[byte]


def _printable_stand_ins() -> dict[str, int]:
    """GPT-2's table: a printable byte stands for itself, the others for the characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _printable_stand_ins()

"""What every tokenizer offers, over a table from token id to bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from ..errors import UserError

END_OF_TEXT = 0


class Tokenizer(ABC):
    """Text to token ids and back, byte for byte.

    ``files`` are the vocabulary files, ``kind`` is ``"world"`` or ``"pile"``. Id 0 is the end of text in RWKV's
    vocabularies and decodes to nothing there; in others it may be a token like any.
    """

    kind: str

    def __init__(self, files: list[Path], tokens: Mapping[int, bytes]):
        """``tokens`` maps each id that stands for text to its bytes; id 0 is the end of text where it is not among them."""
        self.files = files
        self.tokens = {END_OF_TEXT: b"", **tokens}

    @property
    def end_ids(self) -> frozenset[int]:
        """The end of text of the vocabulary itself, whatever a model's configuration says."""
        return frozenset() if self.tokens[END_OF_TEXT] else frozenset((END_OF_TEXT,))

    @property
    def max_id(self) -> int:
        return max(self.tokens)

    def encode(self, text: str | bytes) -> list[int]:
        """Token ids of ``text``; bytes need not be UTF-8, and a str may carry undecodable bytes as ``surrogateescape``
        left them (a command line argument). Raises UserError for text that the vocabulary cannot spell."""
        if isinstance(text, str):
            try:
                text = text.encode("utf-8", "surrogateescape")
            except UnicodeEncodeError as error:
                raise UserError(
                    f"The text holds a lone surrogate (U+{ord(error.object[error.start]):04X}) at character {error.start}, "
                    "which no encoding can write; remove it."
                ) from None
        return self.encode_bytes(text)

    @property
    @abstractmethod
    def definition(self) -> str:
        """All that tells the tokenizer from others, whatever the form of its file."""

    @abstractmethod
    def encode_bytes(self, data: bytes) -> list[int]:
        """Token ids whose bytes, joined, are ``data``."""

    def spell(self, data: bytes) -> list[int]:
        """Token ids whose bytes, joined, are ``data``, of what stands within a text: ``encode`` where that adds and loses
        nothing, as some tokenizers do with spaces at the beginning, else the longest token at every place. Raises UserError
        for bytes that no token has."""
        tokens = self.encode_bytes(data)
        if self.decode_bytes(tokens) == data:
            return tokens
        id_of = {spelled: token for token, spelled in self.tokens.items()}
        longest, tokens, start = max(map(len, id_of)), [], 0
        while start < len(data):
            ends = range(min(start + longest, len(data)), start, -1)
            end = next((end for end in ends if data[start:end] in id_of), None)
            if end is None:
                raise UserError(f"The vocabulary {self.files[0].name} has no token for the byte {data[start]:#04x}.")
            tokens.append(id_of[data[start:end]])
            start = end
        return tokens

    def token_bytes(self, token: int) -> bytes:
        """Bytes of one token, which may be part of a character. Raises UserError for an id that is no token."""
        if token not in self.tokens:
            raise UserError(
                f"Token {token} is not in the vocabulary {self.files[0].name}, whose ids go up to {self.max_id}."
            )
        return self.tokens[token]

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        return b"".join(map(self.token_bytes, tokens))

    def decode(self, tokens: Iterable[int]) -> str:
        """Text of ``tokens``, with U+FFFD for bytes that are not UTF-8."""
        return self.decode_bytes(tokens).decode("utf-8", "replace")

    def valid_ids(self, vocab_size: int) -> np.ndarray:
        """bool [vocab_size]: False for padding, which a model's head has rows for but no text belongs to. Raises UserError for
        a vocabulary with ids beyond."""
        if self.max_id >= vocab_size:
            raise UserError(
                f"The vocabulary {self.files[0]} has ids up to {self.max_id}, and the model {vocab_size} tokens; write it "
                "again with rwkv-mlc gen-config."
            )
        valid = np.zeros(vocab_size, dtype=bool)
        valid[list(self.tokens)] = True
        return valid

"""The World tokenizer: greedy longest match over bytes, for any vocabulary in the format of rwkv_vocab_v20230424.txt.

Same ids as ``TRIE_TOKENIZER`` of the ``rwkv`` package (``rwkv_tokenizer.py``).
"""

from __future__ import annotations

import ast
import re
import tempfile
from functools import cached_property
from pathlib import Path

import numpy as np
from pyrwkv_tokenizer import RWKVTokenizer

from ..errors import UserError
from .base import END_OF_TEXT, Tokenizer

MAX_IDS = 1 << 16

_LINE = re.compile(r"(\d{1,9}) (.+) (\d{1,4})", re.ASCII)


class WorldTokenizer(Tokenizer):
    kind = "world"

    def __init__(self, path: Path):
        """Read a vocabulary of lines ``<id> <Python literal of str or bytes> <length in bytes>``.

        Ids run from 1 to 65535 and may leave gaps; a line for id 0 may name the end of text. Raises UserError, naming
        file and line, for anything else.
        """
        super().__init__([path], _read_vocabulary(path))

    @cached_property
    def _matcher(self) -> RWKVTokenizer:
        """The longest-match trie, over Latin-1 text in which each character stands for one byte: so it takes any bytes,
        and its own reader, which knows only some of Python's escapes, sees only ``\\xNN``."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "vocabulary.txt"
            with open(path, "w", encoding="ascii") as file:
                for token, data in self.tokens.items():
                    if token != END_OF_TEXT:
                        spelled = data.decode("latin-1").encode("utf-8")
                        literal = "".join(f"\\x{byte:02x}" for byte in spelled)
                        file.write(f"{token} b'{literal}' {len(spelled)}\n")
            return RWKVTokenizer(vocab_filepath=str(path))

    @cached_property
    def _lengths(self) -> np.ndarray:
        lengths = np.zeros(self.max_id + 1, dtype=np.int64)
        for token, data in self.tokens.items():
            lengths[token] = len(data)
        return lengths

    def encode_bytes(self, data: bytes) -> list[int]:
        """Greedy longest match. Raises UserError where no token begins with the next byte."""
        tokens = self._matcher.encode(data.decode("latin-1"))
        matched = int(self._lengths[tokens].sum()) if tokens else 0
        if matched != len(data):
            raise UserError(
                f"The vocabulary {self.files[0].name} has no token for byte 0x{data[matched]:02x} at position "
                f"{matched} of the text; leave it out or use a vocabulary with all 256 single bytes."
            )
        return tokens


def _read_vocabulary(path: Path) -> dict[int, bytes]:
    try:
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except OSError as error:
        raise UserError(f"Cannot read the vocabulary {path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a World vocabulary: it is not UTF-8 text.") from None
    tokens: dict[int, bytes] = {}
    id_of: dict[bytes, int] = {}
    for number, line in enumerate(lines, 1):
        token, data = _parse_line(line, f"{path}, line {number}")
        if token in tokens:
            raise UserError(f"{path}, line {number}: id {token} was given before; each id must stand for one token.")
        if data in id_of:
            raise UserError(f"{path}, line {number}: token {data!r} already has id {id_of[data]}.")
        tokens[token] = data
        id_of[data] = token
    return tokens


def _parse_line(line: str, where: str) -> tuple[int, bytes]:
    match = _LINE.fullmatch(line)
    if not match:
        raise UserError(f'{where}: expected "<id> <Python literal> <length in bytes>", found {line[:60]!r}.')
    token, length = int(match[1]), int(match[3])
    try:
        literal = ast.literal_eval(match[2])
        data = literal.encode("utf-8") if isinstance(literal, str) else literal
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        data = None
    if not isinstance(data, bytes) or not data:
        raise UserError(f"{where}: {match[2][:60]} is not a Python literal of non-empty text or bytes.")
    if len(data) != length:
        raise UserError(f"{where}: the token has {len(data)} bytes, not {length}.")
    if token >= MAX_IDS:
        raise UserError(f"{where}: id {token} is above {MAX_IDS - 1}, the largest a World vocabulary can have.")
    return token, data

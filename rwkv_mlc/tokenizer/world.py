"""The World tokenizer: greedy longest match over bytes, for any vocabulary in the format of rwkv_vocab_v20230424.txt.

Same ids as ``TRIE_TOKENIZER`` of the ``rwkv`` package (``rwkv_tokenizer.py``).
"""

from __future__ import annotations

import ast
import re
from functools import cached_property
from pathlib import Path

import msgpack

from ..errors import UserError
from ..escaping import shortened
from ..regular_files import read_bytes
from ..text_encoding import in_utf8
from .base import END_OF_TEXT, Tokenizer

MAX_IDS = 1 << 16

TOKENIZER_MODEL = "tokenizer_model"
PAD = b"<|pad%d|>"  # in it, the text of an id that stands for nothing

LARGEST_FILE = 64 << 20  # bytes; World's own has one of them

_LITERAL = re.compile(r"""b?(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")""", re.DOTALL)
_LINE = re.compile(r"(\d{1,9}) (.+) (\d{1,4})", re.ASCII)
_PLAIN = re.compile(r"""(['"])[^'"\\\x00-\x1f]+\1""")  # a str without escapes


class WorldTokenizer(Tokenizer):
    kind = "world"

    def __init__(self, path: Path):
        """Read a vocabulary of lines ``<id> <Python literal of str or bytes> <length in bytes>``.

        Ids run from 1 to 65535 and may leave gaps; a line for id 0 may name the end of text. Instead of that it may be a
        ``tokenizer_model``, mlc_llm's msgpack map from ids to bytes, as long as it has lost none of the single bytes. Raises
        UserError, naming file and line, for anything else.
        """
        tokens = _read_map(path) if path.name == TOKENIZER_MODEL else _read_vocabulary(path)
        tokens.pop(END_OF_TEXT, None)
        super().__init__([path], tokens)
        self._id_of = {data: token for token, data in tokens.items()}

    @property
    def definition(self) -> str:
        return repr(sorted(self.tokens.items()))

    @cached_property
    def _lengths(self) -> dict[bytes, list[int]]:
        """How long the tokens are that begin with two given bytes, the longest first and 1 last."""
        lengths: dict[bytes, set[int]] = {}
        for data in self._id_of:
            lengths.setdefault(data[:2], {1}).add(len(data))
        return {start: sorted(found, reverse=True) for start, found in lengths.items()}

    def encode_bytes(self, data: bytes) -> list[int]:
        """Greedy longest match. Raises UserError where no token begins with the next byte."""
        tokens, at = [], 0
        while at < len(data):
            for length in self._lengths.get(data[at : at + 2], (1,)):
                token = self._id_of.get(data[at : at + length])
                if token is not None:
                    break
            else:
                raise UserError(
                    f"The vocabulary {self.files[0].name} has no token for byte 0x{data[at]:02x} at position {at} of the "
                    "text; leave it out or use a vocabulary with all 256 single bytes."
                )
            tokens.append(token)
            at += length
        return tokens

    def lines(self) -> str:
        """The vocabulary in the format of ``rwkv_vocab_v20230424.txt``."""
        return "".join(f"{token} {data!r} {len(data)}\n" for token, data in sorted(self.tokens.items()) if data)


def _read_map(path: Path) -> dict[int, bytes]:
    try:
        found = msgpack.unpackb(read_bytes(path, LARGEST_FILE), raw=True, strict_map_key=False, object_pairs_hook=tuple)
    except OSError as error:
        raise UserError(f"Cannot read the vocabulary {path}: {error.strerror}.") from None
    except (ValueError, msgpack.UnpackException) as error:
        raise UserError(f"{path} is damaged, no map of msgpack's ({shortened(str(error))}); get it again.") from None
    is_map = isinstance(found, tuple) and all(
        type(token) is int and 0 <= token < MAX_IDS and isinstance(data, bytes) and data for token, data in found
    )
    if not is_map:
        raise UserError(f"{path} is no World vocabulary: it should map ids below {MAX_IDS} to bytes; get it again.")
    tokens = {token: data for token, data in found if token != END_OF_TEXT and data != PAD % token}
    if len(set(tokens.values())) < len(tokens):
        raise UserError(
            f"{path} gives several ids the same bytes; name the model's own vocabulary with --tokenizer PATH."
        )
    if absent := {bytes([byte]) for byte in range(256)} - set(tokens.values()):
        raise UserError(
            f"{path} lacks {len(absent)} of the 256 single bytes, as what mlc_llm makes of a tokenizer.json does; name the "
            "model's own vocabulary with --tokenizer PATH."
        )
    return tokens


def _read_vocabulary(path: Path) -> dict[int, bytes]:
    try:
        text = in_utf8(read_bytes(path, LARGEST_FILE), path).decode("utf-8")
    except OSError as error:
        raise UserError(f"Cannot read the vocabulary {path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a World vocabulary: it is not UTF-8 text.") from None
    tokens: dict[int, bytes] = {}
    id_of: dict[bytes, int] = {}
    for number, line in enumerate(text.replace("\r\n", "\n").rstrip("\n").split("\n"), 1):
        try:
            token, data = _parse_line(line)
            if token in tokens:
                raise ValueError(f"id {token} was given before; each id must stand for one token")
            if data in id_of:
                raise ValueError(f"token {data!r} already has id {id_of[data]}")
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}.") from None
        tokens[token] = data
        id_of[data] = token
    return tokens


def _parse_line(line: str) -> tuple[int, bytes]:
    """Raises ValueError, with a reason for the user."""
    match = _LINE.fullmatch(line)
    if not match:
        raise ValueError(f'expected "<id> <Python literal> <length in bytes>", found {line[:60]!r}')
    token, length = int(match[1]), int(match[3])
    data = match[2][1:-1].encode("utf-8") if _PLAIN.fullmatch(match[2]) else _evaluate(match[2])
    if not data:
        raise ValueError(f"{match[2][:60]} is not a Python literal of non-empty text or bytes")
    if len(data) != length:
        raise ValueError(f"the token has {len(data)} bytes, not {length}")
    if token >= MAX_IDS:
        raise ValueError(f"id {token} is above {MAX_IDS - 1}, the largest a World vocabulary can have")
    return token, data


def _evaluate(literal: str) -> bytes | None:
    """Bytes of a Python literal of str or bytes; None for anything else."""
    if not _LITERAL.fullmatch(literal):
        return None
    try:
        value = ast.literal_eval(literal)
        value = value.encode("utf-8") if isinstance(value, str) else value
    except (ValueError, SyntaxError):
        return None
    return value if isinstance(value, bytes) else None

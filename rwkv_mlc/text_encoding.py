"""Text from outside, in UTF-8 whatever the mark at its beginning says that it is in: what all readers of files and of standard
input go through. Only what has a mark is decoded, as text may be any bytes."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path

from .errors import UserError

MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",  # before UTF-16's, which it begins with
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


def in_utf8(data: bytes, source: Path | str) -> bytes:
    """Text that begins with a byte order mark in UTF-8 without it, other data as it is; line ends stay. Raises UserError for
    what is not in the encoding of its mark."""
    mark, encoding = _mark(data)
    if encoding in ("", "utf-8"):
        return data[len(mark) :]
    try:
        return data[len(mark) :].decode(encoding).encode("utf-8")
    except UnicodeError as error:
        raise _not_in(encoding, source, error) from None


def lines_in_utf8(stream: BufferedIOBase, source: str) -> Iterator[bytes]:
    """Lines, each as soon as it has come, without their ends, as ``in_utf8`` gives them."""
    first = stream.readline()
    mark, encoding = _mark(first)
    if encoding in ("", "utf-8"):
        if first:
            yield first[len(mark) :].rstrip(b"\r\n")
        for line in stream:
            yield line.rstrip(b"\r\n")
        return
    decoder, text, data = codecs.getincrementaldecoder(encoding)(), "", first[len(mark) :]
    while True:
        try:
            text += decoder.decode(data, final=not data)
        except UnicodeError as error:
            raise _not_in(encoding, source, error) from None
        *lines, text = text.split("\n")
        yield from (line.rstrip("\r").encode("utf-8") for line in lines)
        if not data:
            break
        data = stream.read1()
    if text:
        yield text.encode("utf-8")


def _mark(data: bytes) -> tuple[bytes, str]:
    return next(((mark, encoding) for mark, encoding in MARKS.items() if data.startswith(mark)), (b"", ""))


def _not_in(encoding: str, source: Path | str, error: UnicodeError) -> UserError:
    name = encoding.rpartition("-")[0].upper()
    return UserError(f"{source} begins with the mark of {name} and is not {name} ({error}); save it as UTF-8.")

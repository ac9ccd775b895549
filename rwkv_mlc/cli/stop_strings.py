r"""Stop strings as they are written on a line, whether of a shell or of a chat.

``\n`` is a line end, ``\r`` and ``\t`` are what they are elsewhere, ``\\`` is a backslash, and ``\xNN`` a byte of UTF-8 in
hexadecimal, such as ``\x2c`` for a comma, which would divide strings in a chat."""

from __future__ import annotations

import re

from ..errors import UserError
from ..escaping import quoted

RULE = r"\n is a line end, \t a tab, \\ a backslash, \xNN a byte"
NAMED = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}
SPELLED = {text: f"\\{name}" for name, text in NAMED.items()}
ESCAPE = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|(.?))", re.DOTALL)
NOT_PLAIN = re.compile(r"[\x00-\x1f\x7f-\x9f\\,;]|^ | $")


def parse(text: str) -> str:
    """The string that is meant. Raises UserError for another letter after a backslash, and for bytes that are not UTF-8."""

    def meant(match: re.Match[bytes]) -> bytes:
        if match[1]:
            return bytes.fromhex(match[1].decode())
        name = match[2].decode("latin-1")
        if name not in NAMED:
            raise UserError(
                f"A stop string has {quoted(match[0].decode('latin-1'))}, which means nothing: in it {RULE}."
            )
        return NAMED[name].encode()

    try:
        return ESCAPE.sub(meant, text.encode("utf-8", "surrogateescape")).decode("utf-8")
    except UnicodeError:
        raise UserError(f"The stop string {quoted(text)} is not UTF-8; stop strings are text.") from None


def spelled(text: str) -> str:
    """What ``parse`` takes, on one line and without commas and semicolons."""
    return NOT_PLAIN.sub(lambda match: SPELLED.get(match[0], f"\\x{ord(match[0]):02x}"), text)

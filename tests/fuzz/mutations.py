"""Changes to bytes, to JSON and to lines, each drawn from a generator."""

from __future__ import annotations

import codecs
import copy
import json
import random
import struct
from typing import Any

NUMBERS = [
    0,
    1,
    -1,
    2,
    7,
    127,
    255,
    4096,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**63,
    2**64 - 1,
    10**30,
]
# Commands write what they are told to, as root where that runs them: no string names a file that could be lost.
STRINGS = [
    "",
    ".",
    "..",
    "../x",
    "../../x",
    "/dev/null/x",
    "/proc/version",
    "a/b",
    "a\\b",
    "C:x",
    "x\0y",
    "\x1b]0;title\x07",
    "\x9b31m\u202e",
    "\ud800",
    "\udc80",
    "0",
    "-1",
    "1e400",
    "nan",
    "true",
    "null",
    "[red]",
    "\\x2c,\\n",
    "\\xff",
    "\\q\\",
    "\ufeff",
    "{}",
    "{user_message}",
    "x" * 300,
    "x" * 5000,
    "\u0661",
    "é" * 200,
    "5.2",
    "4",
    "float32",
    "q4f16_1",
    "llvm",
]
JSON_VALUES: list[Any] = [
    *NUMBERS,
    *STRINGS,
    None,
    True,
    False,
    0.5,
    -0.0,
    1e308,
    -1e308,
    5e-324,
    float("inf"),
    float("nan"),
    [],
    {},
    [[]],
    [None],
    [1.5],
    [True],
    {"a": 1},
    {"": {}},
    [2**31 - 1] * 9,
    [2**31 - 1, 2**31 - 1],
    [[1, 2], [3]],
    ["a", "b"],
    [1] * 20_000,
    {str(i): i for i in range(5000)},
]


def bytes_of(data: bytes, draw: random.Random) -> bytes:
    """The bytes with a few changes: other bytes, numbers that readers take for sizes, cuts, insertions and repetitions."""
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 1, 2, 3, 6])):
        reach = min(len(changed), draw.choice([16, 64, 512, 4096, 1 << 30]))
        at = draw.randrange(max(reach, 1))
        match draw.randrange(7):
            case 0 | 1:
                changed[at : at + 1] = bytes([draw.choice([0, 1, 127, 128, 255, draw.randrange(256)])])
            case 2 | 3:
                form = draw.choice(["<B", "<H", "<I", "<Q", ">I"])
                number = draw.choice(NUMBERS) % (1 << 8 * struct.calcsize(form))
                changed[at : at + struct.calcsize(form)] = struct.pack(form, number)
            case 4:
                del changed[at : at + draw.choice([1, 4, 8, 100, 1 << 30])]
            case 5:
                changed[at:at] = draw.randbytes(draw.choice([1, 4, 8, 100]))
            case 6:
                changed[at:at] = changed[at : at + draw.choice([1, 8, 64])] * draw.choice([1, 2, 50])
    return bytes(changed)


def value_of(data: Any, draw: random.Random) -> Any:
    """JSON data with a few values replaced, left out, added or put deeper."""
    data = copy.deepcopy(data)
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        data = _changed(data, draw)
    return data


def _changed(data: Any, draw: random.Random) -> Any:
    if isinstance(data, dict) and data and draw.random() < 0.85:
        key = draw.choice(list(data))
        match draw.randrange(12):
            case 0:
                del data[key]
            case 1:
                data[draw.choice(STRINGS)] = data[key]
            case 2:
                data[key] = copy.deepcopy(data[draw.choice(list(data))])
            case _:
                data[key] = _changed(data[key], draw)
        return data
    if isinstance(data, list) and data and draw.random() < 0.85:
        at = draw.randrange(len(data))
        match draw.randrange(10):
            case 0:
                del data[at]
            case 1:
                data.insert(at, copy.deepcopy(draw.choice(data)))
            case 2:
                data[at:at] = [data[at]] * draw.choice([2, 100])
            case _:
                data[at] = _changed(data[at], draw)
        return data
    if isinstance(data, int) and not isinstance(data, bool) and draw.random() < 0.4:
        return data + draw.choice([-1, 1, data, -data, 1000])
    if isinstance(data, str) and draw.random() < 0.2:
        return data + draw.choice(STRINGS)
    return copy.deepcopy(draw.choice(JSON_VALUES))


def json_of(text: bytes, draw: random.Random) -> bytes:
    """JSON text with its data changed, or sometimes its bytes."""
    kind = draw.random()
    if kind < 0.15:
        return bytes_of(text, draw)
    if kind < 0.18:
        opening = draw.choice([b"[", b'{"a":', b'{"model_config":', b"-", b'"\\u'])
        return opening * draw.choice([100, 1000, 200_000])
    if kind < 0.21:
        return in_another_encoding(text.decode("utf-8"), draw)
    data = value_of(json.loads(text), draw)
    return json.dumps(data, ensure_ascii=draw.random() < 0.9).encode("utf-8", "surrogatepass")


def in_another_encoding(text: str, draw: random.Random) -> bytes:
    """Text behind a byte order mark, which may not be its own, or cut."""
    marks = {
        codecs.BOM_UTF8: "utf-8",
        codecs.BOM_UTF16_LE: "utf-16-le",
        codecs.BOM_UTF16_BE: "utf-16-be",
        codecs.BOM_UTF32_LE: "utf-32-le",
    }
    mark = draw.choice(list(marks))
    data = text.encode(marks[mark if draw.random() < 0.8 else draw.choice(list(marks))], "surrogatepass")
    return mark + data[: len(data) - draw.choice([0, 0, 0, 1, 2, 3])]


def lines_of(text: bytes, draw: random.Random) -> bytes:
    """Text with some of its lines changed, or in another encoding."""
    if draw.random() < 0.05:
        return in_another_encoding(text.decode("utf-8"), draw)
    lines = text.split(b"\n")
    for _ in range(draw.choice([1, 1, 3])):
        at = draw.randrange(len(lines))
        match draw.randrange(5):
            case 0:
                lines[at] = bytes_of(lines[at], draw)
            case 1:
                words = lines[at].split(b" ")
                word = draw.choice([*map(str, NUMBERS), *STRINGS, "'" * 3, "b'\\xff'", "(" * 3000, "-" * 3000 + "1"])
                words[draw.randrange(len(words))] = word.encode("utf-8", "surrogatepass")
                lines[at] = b" ".join(words)
            case 2:
                lines.insert(at, draw.choice(lines))
            case 3:
                del lines[at : at + draw.choice([1, 100])]
                lines = lines or [b""]
            case 4:
                lines[at] = draw.choice([b"\xef\xbb\xbf", b"\xff", b"\r", b"\0"]) + lines[at]
    return b"\n".join(lines)


def words_of(words: list[str], draw: random.Random) -> list[str]:
    """Arguments with some of them changed, left out or added."""
    words = list(words)
    for _ in range(draw.choice([1, 1, 2, 3])):
        at = draw.randrange(len(words))
        hostile = draw.choice([*map(str, NUMBERS), *STRINGS, "9" * 5000, "1,2,x", ",", "=", "-", "--", "x/" * 2500])
        hostile = hostile.replace("\0", "")
        match draw.randrange(6):
            case 0:
                del words[at]
                words = words or ["--help"]
            case 1:
                words.insert(at, hostile)
            case 2:
                words.insert(at, draw.choice(words))
            case _:
                words[at] = hostile
    return words

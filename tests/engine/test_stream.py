from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from rwkv_mlc.engine.stream import TextStream

VECTORS = json.loads((Path(__file__).parent / "generation_vectors.json").read_text(encoding="utf-8"))["stream"]


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: repr(bytes.fromhex("".join(case["chunks"]))))
def test_vectors(case):
    stream = TextStream(case["stop"])
    assert [stream.push(bytes.fromhex(chunk)) for chunk in case["chunks"]] == case["pushed"]
    assert stream.finish() == case["finished"]
    assert stream.stopped == case["stopped"]
    assert stream.released.hex() == case["released"]


def before_first_stop(data: bytes, stops: list[str]) -> tuple[bytes, bool]:
    """The definition: the first position at which a stop string is complete, and the longest that ends there."""
    for end in range(1, len(data) + 1):
        starts = [end - len(s) for stop in stops if data[:end].endswith(s := stop.encode("utf-8"))]
        if starts:
            return data[: min(starts)], True
    return data, False


def random_chunks(rng: random.Random, data: bytes) -> list[bytes]:
    chunks = []
    while data:
        size = rng.choice([0, 1, 1, 1, 2, 3, 7])
        chunks.append(data[:size])
        data = data[size:]
    return chunks


def test_any_chunking_gives_the_text_before_the_first_stop():
    rng = random.Random(0)
    pieces = ["a", "b", "ab", " ", "\n", "\n\n", "é", "好", "。\n", "🤗", "User:"]
    pieces += [b"\xff", b"\xf0\x9f", b"\xe5", b"\x80"]
    stops = ["\n\n", "User:", "aab", "ab", "b\n", "好。", "éa", "🤗🤗", "a"]
    for _ in range(3000):
        parts = [rng.choice(pieces) for _ in range(rng.randrange(12))]
        data = b"".join(part if isinstance(part, bytes) else part.encode("utf-8") for part in parts)
        chosen = rng.sample(stops, rng.randrange(4))
        expected, stopped = before_first_stop(data, chosen)

        stream = TextStream(chosen)
        pushed = [stream.push(chunk) for chunk in random_chunks(rng, data)]
        text = "".join(pushed) + stream.finish()

        assert (text, stream.stopped) == (expected.decode("utf-8", "replace"), stopped), (data, chosen)
        assert stream.released == expected


def test_text_is_certain_when_it_is_returned():
    """Whatever follows, the text so far stays a beginning of the answer."""
    rng = random.Random(1)
    for _ in range(500):
        data = "".join(rng.choice(["a", "\n", "é", "🤗", "U", "s"]) for _ in range(8)).encode("utf-8")
        for cut in range(len(data)):
            stream = TextStream(["\n\n", "Us"])
            so_far = stream.push(data[:cut])
            expected, _ = before_first_stop(data, ["\n\n", "Us"])
            assert expected.decode("utf-8").startswith(so_far)


def test_text_comes_as_early_as_it_can():
    stream = TextStream(["\n\n"])
    assert stream.push("héllo".encode()) == "héllo"
    assert stream.push(b"\n") == ""
    assert stream.push(b"x") == "\nx"
    assert stream.push("é".encode()[:1]) == ""
    assert stream.push("é".encode()[1:]) == "é"


def test_an_invalid_byte_is_replaced_at_once_and_an_incomplete_character_only_when_it_cannot_end():
    stream = TextStream()
    assert stream.push(b"\xff") == "\ufffd"
    assert stream.push(b"\xf0\x9f\xa4") == ""
    assert stream.push(b"a") == "\ufffda"
    assert stream.push(b"\xf0\x9f") == ""
    assert stream.finish() == "\ufffd"


def test_nothing_follows_a_stop():
    stream = TextStream(["stop"])
    assert stream.push(b"go stop go") == "go "
    assert stream.stopped
    assert stream.push(b"more") == "" and stream.finish() == ""
    assert stream.released == b"go "

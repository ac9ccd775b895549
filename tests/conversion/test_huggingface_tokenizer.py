"""The tokenizer and the chat template of a folder, through transformers, against ours."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from rwkv_mlc.config import RWKVConfig
from rwkv_mlc.conversion.tokenizer_files import write_tokenizer
from rwkv_mlc.engine.templates import Template, load_template
from rwkv_mlc.tokenizer import Tokenizer, find_vocabulary, load_tokenizer
from rwkv_mlc.weights.checkpoint import Checkpoint

END = "<|endoftext|>"
PIECES = [b"a", b" Hello", "é日本🤗".encode(), b"\n\n", b"<|endoftext|>", b"\xff\xfe", b"\xf0\x9f\xa4", b"  ", b"\x00"]


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    return load_tokenizer(find_vocabulary(Checkpoint("any", "", "", {}), RWKVConfig("4", 65536, 64, 1, 64)))


def write(folder: Path, tokenizer: Tokenizer, template: str = "rwkv_world"):
    folder.mkdir()
    write_tokenizer(folder, tokenizer, load_template(template), 4096)
    (folder / "config.json").write_text("{}")
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=True)


@pytest.fixture(scope="module")
def theirs(ours, tmp_path_factory):
    return write(tmp_path_factory.mktemp("tokenizer") / "world", ours)


def test_every_token(ours, theirs):
    tokens = {token: data for token, data in ours.tokens.items() if token}
    assert len(tokens) == 65529 and theirs.bytes_of == tokens
    for token, data in tokens.items():
        assert theirs.encode_bytes(data) == [token] and theirs.decode_bytes([token]) == data
        assert theirs.convert_tokens_to_ids(theirs.convert_ids_to_tokens(token)) == token
    some = random.Random(0).sample(sorted(tokens), 3000)
    for token in some:
        assert theirs.decode([token]) == ours.decode([token])
        assert theirs.encode(tokens[token].decode("utf-8", "surrogateescape")) == [token]


def test_any_bytes(ours, theirs):
    draw = random.Random(1)
    for _ in range(300):
        data = b"".join(draw.choices([*PIECES, draw.randbytes(9)], k=draw.randrange(12)))
        ids = theirs(data.decode("utf-8", "surrogateescape")).input_ids
        assert ids == ours.encode_bytes(data) == theirs.encode_bytes(data)
        assert theirs.decode_bytes(ids) == data and theirs.decode(ids) == ours.decode(ids)


def test_parts_of_characters_and_the_end_of_text(theirs):
    assert theirs.decode(theirs.encode("🤗")[:1]) == "\ufffd"
    hello = theirs.encode("Hello")
    assert (
        theirs.decode([*hello, 0]) == f"Hello{END}" and theirs.decode([*hello, 0], skip_special_tokens=True) == "Hello"
    )
    assert (theirs.eos_token_id, theirs.pad_token_id, theirs.bos_token_id) == (0, 0, 0)
    assert 0 not in theirs.encode(END) and theirs.encode(END, split_special_tokens=False) == [0]
    assert theirs.decode([65535]) == "" and theirs.vocab_size == 65530
    batch = theirs(["Hello world", "Hi"], padding=True)
    assert batch["input_ids"][1][0] == 0 and batch["attention_mask"][1] == [0] * (len(batch["input_ids"][1]) - 1) + [1]


def test_saved_and_loaded_it_is_the_same(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    assert again.bytes_of == theirs.bytes_of and again.chat_template == theirs.chat_template
    assert again.encode("日本 \n\n") == theirs.encode("日本 \n\n") and again.eos_token_id == 0
    again.add_tokens(["<one>"])
    ids = again.encode("a<one>日", split_special_tokens=False)
    assert len(ids) == 3 and again.decode(ids) == "a<one>日"


TALK = [
    {"role": "user", "content": " Who\r\n\r\n \t\nare\n you? \n"},
    {"role": "assistant", "content": "Tom é 日"},
    {"role": "user", "content": "\x0bAnd\n\n\n\"'{}\\n%}{{ x"},
    {"role": "assistant", "content": "Nobody.\n"},
    {"role": "user", "content": "Why?"},
]
TOOLS = [{"name": "f", "parameters": {"town": "Zürich's <b>"}}]


def rendered(template: Template, messages: list[dict], mode: str | None, tools: list | None) -> str:
    """What our chat feeds."""
    first, *rest = messages
    if first["role"] == "system":
        template, messages = template.model_copy(update={"system_message": first["content"]}), rest
    text = template.system_prompt(tools or ())
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            answer = message["content"]
            _, end, said = answer.partition("</think>")
            text += template.told(said.lstrip() if end else answer).decode()
        else:
            said = message["content"]
            if message["role"] == "tool":
                said = template.tools().result.replace("{result}", said)
            last = i == len(messages) - 1
            text += template.user_turn(said, template.think_mode(mode) if last else None)
    return text


@pytest.mark.parametrize("name", ["plain", "rwkv_g1", "rwkv_raven", "rwkv_world", "rwkv_world_v3"])
def test_chat_templates_render_what_ours_do(ours, tmp_path, name):
    template = load_template(name)
    tokenizer = write(tmp_path / "folder", ours, name)

    def check(messages: list[dict], mode: str | None = None, tools: list | None = None) -> None:
        options = {"think": mode} if mode else {}
        found = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, tools=tools, **options
        )
        assert found == rendered(template, messages, mode, tools)

    for end in range(1, len(TALK) + 1, 2):
        check(TALK[:end])
        check([{"role": "system", "content": " Be\n\nbrief. "}, *TALK[:end]])
    for answer in ("", "x\n\n", "\n", "x\n\n\n"):
        check([TALK[0], {"role": "assistant", "content": answer}, TALK[-1]])
    for mode in template.think.modes if template.think else ():
        check(TALK, mode)
    if template.think:
        check([TALK[0], {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes."}, TALK[-1]])
    else:
        with pytest.raises(Exception, match="this model has no think mode"):
            tokenizer.apply_chat_template(TALK, tokenize=False, think="on")
    if template.tool_use:
        check([TALK[0]], tools=TOOLS)
        check([{"role": "system", "content": "S"}, *TALK[:2], {"role": "tool", "content": '{"a": 1}\n'}], tools=TOOLS)
    else:
        with pytest.raises(Exception, match="this model has no form for tools"):
            tokenizer.apply_chat_template(TALK, tokenize=False, tools=TOOLS)
    closed = tokenizer.apply_chat_template(TALK[:2], tokenize=False)
    prompt = tokenizer.apply_chat_template(TALK[:1], tokenize=False, add_generation_prompt=False)
    assert closed.startswith(prompt)

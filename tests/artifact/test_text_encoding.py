"""Byte order marks, as editors and shells of Windows write them, in every file of text that is read."""

from __future__ import annotations

import codecs
import json
import shutil
from pathlib import Path

import pytest
import tokenizers

from rwkv_mlc import Engine, UserError
from rwkv_mlc.models import resolve
from rwkv_mlc.text_encoding import in_utf8
from rwkv_mlc.tokenizer import load_tokenizer, write_tokenizer_files
from rwkv_mlc.weights import open_checkpoint
from support.paths import DEMO

ENCODINGS = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}
TEXT = "a\r\nb é 好 😀 \ufeff\n"


@pytest.fixture(params=ENCODINGS)
def encode(request):
    """Text of UTF-8 in another encoding, with its mark."""
    return lambda data: ENCODINGS[request.param] + data.decode("utf-8").encode(request.param)


def test_a_mark_says_what_a_text_is_in(encode):
    assert in_utf8(encode(TEXT.encode()), "x") == TEXT.encode()
    assert in_utf8(encode(b""), "x") == b""
    for other in (b"", b"\xef\xbb", b"\xff", b"\xff\xf0\xfe", b"\x00\x00\xff\xfe", b"plain \xff"):
        assert in_utf8(other, "x") == other


def test_a_mark_that_is_not_true():
    for data in (codecs.BOM_UTF16_LE + b"abc", codecs.BOM_UTF16_BE + b"\xd8\x00"):
        with pytest.raises(
            UserError, match="notes.txt begins with the mark of UTF-16 and is not UTF-16 .*; save it as"
        ):
            in_utf8(data, "notes.txt")


def test_vocabularies(encode, tmp_path):
    """An artifact's are without, as other engines know nothing of marks."""
    world, marked = DEMO / "rwkv_vocab_demo.txt", tmp_path / "vocab.txt"
    marked.write_bytes(encode(world.read_bytes().replace(b"\n", b"\r\n")))
    assert load_tokenizer(marked).tokens == load_tokenizer(world).tokens
    shutil.copy(DEMO / "model.safetensors", tmp_path)
    assert open_checkpoint(str(tmp_path / "model.safetensors")).tokenizer_files == [marked]
    write_tokenizer_files([marked], tmp_path, 768)
    assert (tmp_path / "rwkv_vocab.txt").read_bytes().splitlines() == world.read_bytes().splitlines()
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    marked = tmp_path / "given" / "tokenizer.json"
    marked.parent.mkdir()
    marked.write_bytes(encode(bpe.to_str().encode()))
    assert load_tokenizer(marked).encode("é b") == bpe.encode("é b").ids
    write_tokenizer_files([marked], tmp_path, 256)
    assert (tmp_path / "tokenizer.json").read_bytes() == bpe.to_str().encode()


def test_files_of_json(encode, reciter, tmp_path):
    """A Hugging Face folder's, and those of an artifact with its template."""
    folder = Path(shutil.copytree(DEMO, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"layer_norm_epsilon": 1e-3}
    (folder / "config.json").write_bytes(encode(json.dumps(config).encode()))
    assert resolve(open_checkpoint(str(folder)))[0].layer_norm_epsilon == 1e-3
    artifact = Path(shutil.copytree(reciter, tmp_path / reciter.name))
    for name in ("build-record.json", "params/mlc-chat-config.json", "params/tensor-cache.json"):
        (artifact / name).write_bytes(encode((artifact / name).read_bytes()))
    engine = Engine(artifact)
    assert engine.template.user_turn("é") == "User: é\n\nAssistant:"
    assert engine.generate("Recite:", temperature=0, max_tokens=3).text == " ab"

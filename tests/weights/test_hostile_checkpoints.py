"""Checkpoints that were made to do harm: sizes that are not there, names that lead elsewhere, files that never end."""

from __future__ import annotations

import json
import os
import struct
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tokenizers
from safetensors.numpy import save_file

from rwkv_mlc.errors import UserError
from rwkv_mlc.models import resolve
from rwkv_mlc.tokenizer import load_tokenizer
from rwkv_mlc.weights import open_checkpoint
from support.limited import outcome
from support.synthetic import synthetic_checkpoint

OPEN = "from rwkv_mlc.weights import open_checkpoint; open_checkpoint(sys.argv[1])"
RESOLVE = (
    "from rwkv_mlc.weights import open_checkpoint; from rwkv_mlc.models import resolve; "
    "_, parameters, tensors = resolve(open_checkpoint(sys.argv[1])); [tensors[p.source].read() for p in parameters]"
)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def tensor(key: str, elements: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    """The pickle of a float32 tensor in the storage ``key``."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + integer(elements) + b"tQ"
    sizes = b"(" + b"".join(map(integer, shape)) + b"t(" + b"".join(map(integer, strides)) + b"t"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + integer(0) + sizes + b"\x89ccollections\nOrderedDict\n)RtR"
    )


def write_pth(path: Path, pickled: bytes, storages: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", b"\x80\x02" + pickled + b".")
        for key, data in (storages or {}).items():
            archive.writestr(f"model/data/{key}", data)
    return path


@pytest.mark.parametrize(
    "pickled",
    [
        b"}r\xff\xff\xff\x7f]",
        b"}" + b")" + b"\x85" * 300_000 + b"K\x01s",
        b"}" + text("a") + b")" + b"\x85" * 300_000 + b"s",
        b"}(" + b"]" + b"\x85" * 300_000 + b"K\x01u",
        b"ccollections\nOrderedDict\n(](" + b")" + b"\x85" * 300_000 + b"K\x01\x86etR",
        b"\x8f(" + b")" + b"\x85" * 300_000 + b"\x90",
        b"\x96" + struct.pack("<Q", 1 << 40),
        b"\x8a\xff" + b"\x7f" * 255,
        b"}" + text("a" * 1000) + b"K\x01s",
    ],
    ids=["memo", "deep key", "deep value", "deep list key", "deep pair", "set", "bytearray", "long", "name"],
)
def test_pickles_that_ask_for_more_than_there_is(tmp_path, pickled):
    found = outcome(OPEN, write_pth(tmp_path / "evil.pth", pickled))
    assert found.startswith("UserError: ") and len(found) < 600


def test_a_tensor_of_more_elements_than_the_file_has_bytes(tmp_path):
    pickled = b"}" + text("emb.weight") + tensor("0", 1, (200_000, 200_000), (0, 0)) + b"s"
    path = write_pth(tmp_path / "model.pth", pickled, {"0": bytes(4)})
    assert "emb.weight has more elements than the file bytes" in outcome(OPEN, path)


def test_an_expanded_tensor_is_read(tmp_path):
    pickled = b"}" + text("a") + tensor("0", 1, (3, 4), (0, 0)) + b"s"
    path = write_pth(tmp_path / "model.pth", pickled, {"0": struct.pack("<f", 2.5)})
    np.testing.assert_array_equal(open_checkpoint(str(path)).tensors["a"].read(), np.full((3, 4), 2.5, np.float32))


@pytest.mark.parametrize("block", ["1000000000", "65535", "7", "9" * 5000])
def test_blocks_that_are_not_there(tmp_path, block):
    weights = synthetic_checkpoint("5.2", layers=2)
    save_file({**weights, f"blocks.{block}.x": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    found = outcome(RESOLVE, tmp_path / "model.safetensors")
    assert found.startswith("UserError: ") and len(found) < 2500


def test_unknown_tensors_are_counted(tmp_path):
    weights = synthetic_checkpoint("5.2", layers=2)
    unknown = {f"{'x' * 200}.{i}": np.zeros(1, np.float32) for i in range(10_000)}
    save_file({**weights, **unknown}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"10000 tensors are wrong: unknown xx.*xxxx\.\d+; and 9,968 more$") as error:
        resolve(open_checkpoint(str(tmp_path / "model.safetensors")))
    assert len(str(error.value)) < 5000


@pytest.mark.parametrize("name", ["/abs/x.safetensors", "../x.safetensors", "a/../../x.safetensors", "..", ".", "x\0y"])
def test_an_index_that_names_files_elsewhere(tmp_path, name):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(synthetic_checkpoint("5.2"), tmp_path / "x.safetensors")
    (folder / "config.json").write_text("{}")
    index = {"weight_map": {"emb.weight": name.replace("/abs", str(tmp_path))}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="expected the name of a file in the same folder"):
        open_checkpoint(str(folder))


def test_an_index_that_names_a_link(tmp_path):
    """Out of the folder it is refused; out of a snapshot into its repository it is the hub's cache."""
    folder = tmp_path / "models--a--b" / "snapshots" / "0123"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"emb.weight": "x.safetensors"}}))
    (folder.parent.parent / "blobs").mkdir()
    for target in (tmp_path / "secret", folder.parent.parent / "blobs" / "4567"):
        save_file(synthetic_checkpoint("5.2"), target)
    (folder / "x.safetensors").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="names x.safetensors, which cannot be read .it is a link out of"):
        open_checkpoint(str(folder))
    (folder / "x.safetensors").unlink()
    (folder / "x.safetensors").symlink_to(Path("../../blobs/4567"))
    assert "emb.weight" in open_checkpoint(str(folder)).tensors


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors", "config.json", "rwkv_vocab.txt", "tokenizer.json"])
def test_pipes_are_not_waited_for(tmp_path, name):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(synthetic_checkpoint("5.2"), folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    code = (
        "from rwkv_mlc.weights import open_checkpoint; from rwkv_mlc.models import resolve; "
        "from rwkv_mlc.tokenizer import find_vocabulary; c = open_checkpoint(sys.argv[1]); "
        "find_vocabulary(c, resolve(c)[0])"
    )
    assert outcome(code, folder).startswith("UserError: ")
    if name.startswith("model."):
        assert "cannot be read: it is a pipe" in outcome(OPEN, folder / name)


def test_devices_are_no_checkpoints():
    assert "/dev/zero cannot be read: it is a device" in outcome(OPEN, "/dev/zero")


@pytest.mark.parametrize(
    "content",
    [
        "[" * 200_000,
        '{"a":' * 200_000,
        '{"context_length": ' + "9" * 100_000 + "}",
        '{"context_length": 1e400}',
        '{"\\ud800": 1, "context_length": "\\ud800"}',
        '{"weight_map": [' + "1," * 3_000_000 + "1]}",
        '{"weight_map": {' + ",".join(f'"{i}": 1' for i in range(500_000)) + "}}",
    ],
    ids=["lists", "objects", "digits", "infinite", "surrogates", "entries", "errors"],
)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_json_that_asks_for_more_than_there_is(tmp_path, name, content):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(synthetic_checkpoint("5.2"), folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    (folder / name).write_text(content)
    found = outcome(OPEN, folder)
    assert found == "no error" or (found.startswith("UserError: ") and len(found) < 600)


def test_a_json_file_without_end(tmp_path):
    save_file(synthetic_checkpoint("5.2"), tmp_path / "model.safetensors")
    with open(tmp_path / "config.json", "wb") as file:
        file.truncate(1 << 40)
    assert "config.json cannot be read (it has 1,099,511,627,776 bytes, expected at most" in outcome(OPEN, tmp_path)


@pytest.mark.parametrize(
    "line",
    ["1 " + "(" * 100_000 + " 1", "1 " + "-" * 100_000 + "1 1", "1 b'" + "\\x41" * 10 + "' + 'a' 1", "1 ['a'] 1"],
)
def test_vocabularies_that_are_no_literals(tmp_path, line):
    (tmp_path / "vocab.txt").write_text(line + "\n")
    code = "from rwkv_mlc.tokenizer import load_tokenizer; from pathlib import Path; load_tokenizer(Path(sys.argv[1]))"
    found = outcome(code, tmp_path / "vocab.txt")
    assert found.startswith("UserError: ") and len(found) < 600


@pytest.mark.parametrize(
    "content", ["[" * 200_000, '{"model":' * 200_000, '{"version": "1.0", "model": {"type": "BPE"}}']
)
def test_tokenizer_files_of_json(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    code = "from rwkv_mlc.tokenizer import load_tokenizer; from pathlib import Path; load_tokenizer(Path(sys.argv[1]))"
    found = outcome(code, tmp_path / "tokenizer.json")
    assert found.startswith("UserError: ") and len(found) < 600


def test_a_token_whose_id_no_vocabulary_has(tmp_path):
    """The library would go through two thousand million ids."""
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0, "b": (1 << 31) - 1}, "merges": []}})
    )
    with pytest.raises(UserError, match="gives a token the id 2,147,483,647, expected at most 1,048,576"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_a_tokenizer_file_that_makes_its_library_panic(tmp_path, monkeypatch):
    class PanicException(BaseException):
        pass

    def panic(_):
        raise PanicException("range end index 18446744073709551615 out of range")

    monkeypatch.setattr(tokenizers, "Tokenizer", SimpleNamespace(from_buffer=panic))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="is not a tokenizer.json: range end index"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_a_tensor_of_more_axes_than_numpy_has(tmp_path):
    weights = synthetic_checkpoint("5.2", layers=1)
    weights["ln_out.bias"] = weights["ln_out.bias"].reshape(-1, *[1] * 40)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="holds ln_out.bias with 41 axes, expected at most 32"):
        open_checkpoint(str(tmp_path / "model.safetensors"))

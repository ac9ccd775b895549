"""GGUF: llama.cpp's names, shapes and block formats, as its own package writes them, and what is no file to read."""

from __future__ import annotations

import struct
import time

import gguf
import numpy as np
import pytest

from rwkv_mlc.errors import UserError
from rwkv_mlc.models import detect_config, resolve
from rwkv_mlc.weights import open_checkpoint
from rwkv_mlc.weights.gguf import read_gguf
from support.compiled import in_memory
from support.gguf_files import converted, small_model, stored, write_gguf
from support.synthetic import synthetic_checkpoint

ARCHITECTURES = ("rwkv6", "rwkv7")
KINDS = "F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS".split()
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def core(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("rescale_every", [0, 1])
def test_every_tensor_is_blinkdls(tmp_path, architecture, rescale_every):
    """Also what was fused, transposed, flattened, or halved in every layer."""
    tensors = small_model(architecture, layers=3)
    path = write_gguf(tmp_path / "model-Q8.gguf", architecture, tensors, rescale_every=rescale_every)
    checkpoint = open_checkpoint(str(path))
    assert (checkpoint.name, checkpoint.format) == ("model-Q8", "gguf")
    assert checkpoint.layer_norm_epsilon == 1e-5 and checkpoint.context_length is None
    assert {n: core(s) for n, s in checkpoint.shapes.items()} == {n: core(a.shape) for n, a in tensors.items()}
    for name, array in tensors.items():
        np.testing.assert_array_equal(checkpoint.tensors[name].read().reshape(array.shape), array, err_msg=name)


@pytest.mark.parametrize("generation", ["6", "7"])
@pytest.mark.parametrize("rescale_every", [0, 2])
def test_the_model_is_that_of_the_pth(tmp_path, generation, rescale_every):
    """Its config and every parameter; with the ranks of 7 all different, though the first layer has others in its file."""
    tensors = synthetic_checkpoint(generation, layers=3, hidden_size=96, head_size=32)
    path = write_gguf(tmp_path / "m.gguf", f"rwkv{generation}", tensors, rescale_every=rescale_every)
    config, parameters, found = resolve(open_checkpoint(str(path)))
    expected, _, originals = resolve(in_memory(tensors))
    assert config == expected
    for parameter in parameters:
        ours, theirs = (parameter.convert(each[parameter.source].read()) for each in (found, originals))
        np.testing.assert_array_equal(ours, theirs, err_msg=parameter.source)


@pytest.mark.parametrize("kind", KINDS)
def test_formats(tmp_path, kind):
    tensors = small_model("rwkv7", hidden_size=256, head_size=64)
    checkpoint = open_checkpoint(str(write_gguf(tmp_path / "m.gguf", "rwkv7", tensors, kind)))
    theirs = converted("rwkv7", tensors)
    for name, ours in [
        ("blk.1.channel_mix_value.weight", "blocks.1.ffn.value.weight"),
        ("blk.0.time_mix_output.weight", "blocks.0.att.output.weight"),
        ("output.weight", "head.weight"),
    ]:
        number, data = stored(name, theirs[name], kind)
        tensor = checkpoint.tensors[ours]
        assert tensor.dtype == DTYPES.get(kind, kind)
        found = tensor.read()
        assert found.dtype == np.float32 and found.std() > 0
        np.testing.assert_array_equal(found, gguf.dequantize(data, number).reshape(theirs[name].shape))
    assert checkpoint.tensors["blocks.1.att.w1"].dtype == "float32"


@pytest.mark.parametrize(
    ("architecture", "facts", "message"),
    [
        ("llama", {}, "is of the architecture 'llama'; what is read of GGUF is rwkv6, rwkv7."),
        ("arwkv7", {}, "'arwkv7', the time mixing of RWKV-7 in the body of a Qwen2; what is read"),
        ("rwkv6qwen2", {}, "'rwkv6qwen2', the time mixing of RWKV-6 in the body of a Qwen2; what is read"),
        ("rwkv7", {"split.count": 3}, "is one of 3 parts; join them with llama-gguf-split --merge."),
        ("rwkv7", {"wkv.head_size": "64"}, "gives wkv.head_size as '64', expected a number of at least 0"),
        ("rwkv7", {"attention.layer_norm_epsilon": float("nan")}, "gives attention.layer_norm_epsilon as nan"),
        ("rwkv7", {"attention.layer_norm_epsilon": -1.0}, "gives attention.layer_norm_epsilon as -1.0"),
    ],
)
def test_what_is_said_of_the_model(tmp_path, architecture, facts, message):
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in facts.items():
        add = {int: writer.add_uint16, float: writer.add_float32, str: writer.add_string}[type(value)]
        add(name if name.startswith("split.") else f"{architecture}.{name}", value)
    writer.add_tensor("output.weight", np.ones((3, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError) as raised:
        open_checkpoint(str(path))
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "size"),
    [("vocab_size", 41), ("embedding_length", 64), ("feed_forward_length", 128), ("block_count", 2)],
)
def test_sizes_that_the_tensors_do_not_have(tmp_path, name, size):
    path = write_gguf(tmp_path / "m.gguf", "rwkv7", small_model("rwkv7"), facts={name: 77})
    with pytest.raises(UserError, match=rf"m.gguf states {name} 77, where its tensors have {size}; convert"):
        open_checkpoint(str(path))
    write_gguf(path, "rwkv7", small_model("rwkv7"), facts={name: size})
    open_checkpoint(str(path))


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def header(tensors: bytes = b"", values: bytes = b"", count: int = 1, version: int = 3) -> bytes:
    architecture = text("general.architecture") + struct.pack("<I", 8) + text("rwkv7")
    return b"GGUF" + struct.pack("<IQQ", version, count, 2 if values else 1) + architecture + values + tensors


def place(name: str = "output.weight", shape: tuple[int, ...] = (32, 2), kind: int = 0, offset: int = 0) -> bytes:
    axes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + axes + struct.pack("<IQ", kind, offset)


LIST = text("list") + struct.pack("<I", 9)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (header(version=1), "is GGUF of version 1, expected 2 or 3"),
        (header(values=LIST + struct.pack("<IQ", 0, 1 << 62)), "is truncated or damaged"),
        (header(values=LIST + struct.pack("<IQ", 8, 1 << 62)), "is truncated or damaged"),
        (header(values=LIST + struct.pack("<IQ", 9, 1)), "a list of the unknown type 9"),
        (header(values=text("x") + struct.pack("<I", 77)), "a value of the unknown type 77"),
        (header(values=struct.pack("<Q", 1 << 63)), "is truncated or damaged"),
        (header(place(kind=99)), "holds output.weight in the unknown type 99; what is read is F32, F16"),
        (header(place(kind=16)), "holds output.weight in IQ2_XXS; what is read is F32, F16"),
        (header(place(shape=(1 << 40, 1 << 40))), "is truncated or damaged at output.weight"),
        (header(place(shape=(33, 2), kind=2)), "output.weight is [2, 33] in Q4_0"),
        (header(place(shape=(0, 2))), "output.weight is [2, 0] in float32"),
        (header(place(shape=(1,) * 9)), "'output.weight' has 9 axes"),
        (header(place(offset=1 << 63)), "is truncated or damaged at output.weight"),
        (header(place() * 2 + bytes(1000), count=2), "holds 'output.weight' twice"),
        (header(count=1 << 60), "is truncated or damaged"),
        (header(values=text("general.alignment") + struct.pack("<II", 4, 0)), "its alignment is no number of bytes"),
    ],
)
def test_headers_that_lie(tmp_path, data, message):
    (tmp_path / "m.gguf").write_bytes(data)
    began = time.process_time()
    with pytest.raises(UserError) as raised:
        open_checkpoint(str(tmp_path / "m.gguf"))
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert time.process_time() - began < 5


def test_truncated_anywhere(tmp_path):
    data = write_gguf(tmp_path / "m.gguf", "rwkv7", small_model("rwkv7", layers=1)).read_bytes()
    for size in range(4, len(data), 997):
        (tmp_path / "cut.gguf").write_bytes(data[:size])
        with pytest.raises(UserError, match="truncated or damaged"):
            read_gguf(tmp_path / "cut.gguf")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blocks.0.qkv.qq.weight", "This is RWKV-7b, whose attention keeps something of every token"),
        ("blocks.3.moba.q.weight", "This is RWKV-X, some of whose layers attend to all of the text"),
        ("blocks.0.rosa_qkv.emb", "This is RWKV-8 with ROSA"),
        ("blocks.0.ffn.enn.weight", "This is an experiment for RWKV-8"),
    ],
)
def test_models_beside_the_generations(name, message):
    shapes = {n: a.shape for n, a in small_model("rwkv7").items()} | {name: (4, 4)}
    with pytest.raises(UserError, match=message):
        detect_config(shapes)

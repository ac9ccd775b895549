"""rwkv.cpp's files: floats, quantized blocks, and what was done to decays."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from rwkv_mlc.config import RWKVConfig
from rwkv_mlc.errors import UserError
from rwkv_mlc.inspection import checkpoint_summary
from rwkv_mlc.models import GENERATIONS, resolve
from rwkv_mlc.weights import open_checkpoint
from support.gguf_files import small_model
from support.paths import GOLDEN
from support.rwkv_cpp import NUMBERS, QUANTIZED, converted, stored, write_rwkv_cpp
from support.synthetic import synthetic_checkpoint

KEY = struct.pack("<5i", 2, 23, 2, 64, 64) + b"blocks.0.att.key.weight"
"""Axes, length of the name, type and shape of a tensor in Q4_0."""

# The formats' definitions (ggml's ggml-quants.c), one block at a time: the scale, then the smallest value, the fifth bits, and
# four bits each, of which the low halves are the first 16 elements.


def half(block: np.ndarray, place: int) -> np.float32:
    return np.float32(block[place : place + 2].view(np.float16)[0])


def nibbles(block: np.ndarray) -> list[int]:
    return [int(byte) & 15 for byte in block[-16:]] + [int(byte) >> 4 for byte in block[-16:]]


def fives(block: np.ndarray, place: int) -> list[int]:
    bits = int(block[place : place + 4].view(np.uint32)[0])
    return [low | (bits >> i & 1) << 4 for i, low in enumerate(nibbles(block))]


BLOCKS = {
    "Q4_0": (18, lambda b: [half(b, 0) * np.float32(q - 8) for q in nibbles(b)]),
    "Q4_1": (20, lambda b: [half(b, 0) * np.float32(q) + half(b, 2) for q in nibbles(b)]),
    "Q5_0": (22, lambda b: [half(b, 0) * np.float32(q - 16) for q in fives(b, 2)]),
    "Q5_1": (24, lambda b: [half(b, 0) * np.float32(q) + half(b, 2) for q in fives(b, 4)]),
    "Q8_0": (34, lambda b: [half(b, 0) * np.float32(q) for q in b[2:].view(np.int8)]),
}
ERROR = {"Q4_0": 0.13, "Q4_1": 0.07, "Q5_0": 0.065, "Q5_1": 0.035, "Q8_0": 0.005}


def core(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("head_size", [32, 128], ids=["4 heads", "1 head"])
def test_rwkv_cpp(tmp_path, generation, head_size):
    weights = synthetic_checkpoint(generation, head_size=head_size)
    path = write_rwkv_cpp(tmp_path / "rwkv-cpp.bin", weights)
    checkpoint = open_checkpoint(str(path))
    assert (checkpoint.name, checkpoint.format, checkpoint.head_size_divisor) == ("rwkv-cpp", "rwkv.cpp", None)
    # rwkv.cpp leaves axes of length 1 out, and its float32 decays do not keep every digit of the smallest.
    assert {n: core(s) for n, s in checkpoint.shapes.items()} == {n: core(a.shape) for n, a in weights.items()}
    for name, array in weights.items():
        found = checkpoint.tensors[name]
        assert found.read().shape == found.shape
        np.testing.assert_allclose(found.read().reshape(array.shape), array, rtol=2e-5, atol=2e-5, err_msg=name)
    config, _, _ = resolve(checkpoint)
    assert config.generation == generation


@pytest.mark.parametrize("generation", ["4", "5.2"])
def test_rwkv_cpp_half(tmp_path, generation):
    weights = synthetic_checkpoint(generation)
    checkpoint = open_checkpoint(str(write_rwkv_cpp(tmp_path / "model", weights, "FP16")))
    for name, array in weights.items():
        stored = array.astype(np.float16) if array.ndim == 2 and ".time_" not in name else array
        assert checkpoint.tensors[name].dtype == stored.dtype
        np.testing.assert_allclose(
            checkpoint.tensors[name].read().reshape(array.shape), stored.astype(np.float32), rtol=2e-5, atol=2e-5
        )


@pytest.mark.parametrize("generation", ["4", "5.2"])
def test_rwkv_cpp_decay_stays_finite(tmp_path, generation):
    """Decays whose exponentials are 0 or 1 in float32 give a finite w that has the same exponentials again."""
    weights = synthetic_checkpoint(generation)
    decay = weights["blocks.1.att.time_decay"]
    decay.flat[:6] = [-200.0, -40.0, -18.0, 4.7, 20.0, 88.0] if generation == "4" else [-200, -40, -18, 4.5, 4.7, 60.0]
    checkpoint = open_checkpoint(str(write_rwkv_cpp(tmp_path / "model.bin", weights)))
    _, parameters, tensors = resolve(checkpoint)
    parameter = next(p for p in parameters if p.source == "blocks.1.att.time_decay")
    found = tensors[parameter.source].read()
    assert np.isfinite(found).all() and np.isfinite(found.astype(np.float32)).all()
    expected = -np.exp(decay.astype(np.float64)) if generation == "4" else np.exp(-np.exp(decay.astype(np.float64)))
    np.testing.assert_allclose(parameter.convert(found), expected.astype(np.float32), rtol=1e-6, atol=1e-44)


def test_rwkv_cpp_impossible_decay_is_not_hidden(tmp_path):
    path = write_rwkv_cpp(tmp_path / "model.bin", synthetic_checkpoint("5.2"))
    data = bytearray(path.read_bytes())
    name = b"blocks.1.att.time_decay"
    start = data.index(name) + len(name)
    data[start : start + 8] = struct.pack("<2f", -0.5, 1.5)
    path.write_bytes(data)
    assert np.isnan(open_checkpoint(str(path)).tensors[name.decode()].read().flat[:2]).all()


def test_the_mixes_of_7_are_six(tmp_path):
    tensors = small_model("rwkv7")
    found = open_checkpoint(str(write_rwkv_cpp(tmp_path / "model.bin", tensors))).tensors
    assert set(found) == set(tensors)
    for letter in "rwkvag":
        name = f"blocks.1.att.x_{letter}"
        np.testing.assert_array_equal(found[name].read().reshape(1, 1, -1), tensors[name])


@pytest.mark.parametrize("generation", ["4", "5.2", "6", "7"])
@pytest.mark.parametrize("kind", QUANTIZED)
def test_rwkv_cpp_quantized(tmp_path, generation, kind):
    """Every value is what the block formats' own formulas give, and near the one that was quantized."""
    weights = synthetic_checkpoint(generation, layers=1, hidden_size=64, head_size=32, ranks=(32, 32, 32, 96))
    checkpoint = open_checkpoint(str(write_rwkv_cpp(tmp_path / "model.bin", weights, kind)))
    theirs = converted(weights)
    numbers = {name: stored(name, array, kind)[0] for name, array in theirs.items()}
    quantized = {name for name, tensor in checkpoint.tensors.items() if tensor.dtype == kind}
    assert quantized == {name for name, number in numbers.items() if number == NUMBERS[kind]}
    assert {"blocks.0.att.key.weight", "blocks.0.ffn.value.weight"} < quantized
    for name in quantized:
        found = checkpoint.tensors[name].read()
        block_size, formula = BLOCKS[kind]
        blocks = np.frombuffer(stored(name, theirs[name], kind)[1], np.uint8).reshape(-1, block_size)
        expected = np.reshape([value for block in blocks for value in formula(block)], theirs[name].shape)
        np.testing.assert_array_equal(found, expected if found.shape == expected.shape else expected.T)
        assert np.abs(found - weights[name]).max() < ERROR[kind] * np.abs(weights[name]).max()
    resolve(checkpoint)


def test_rwkv_cpp_quantized_is_counted_as_stored(tmp_path):
    weights = synthetic_checkpoint("4", layers=1)
    path = write_rwkv_cpp(tmp_path / "model.bin", weights, "Q5_1")
    summary = checkpoint_summary(open_checkpoint(str(path)))
    names = sum(len(name) + 12 + 4 * array.ndim for name, array in converted(weights).items())
    assert summary["bytes"] == path.stat().st_size - 24 - names
    assert summary["dtypes"] == ["Q5_1", "float16", "float32"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda data: data[:20] + struct.pack("<i", 4) + data[24:],
            "Q4_1_O, which ggml gave up in 2023; start from its FP32",
        ),
        (lambda data: data[:20] + struct.pack("<i", 10) + data[24:], "the unknown data type 10"),
        (lambda data: data[:4] + struct.pack("<i", 100) + data[8:], "Q4_0 of before May 2023, which is another format"),
        (lambda data: data[:-40], "truncated or damaged at head.weight"),
        (
            lambda data: data.replace(KEY, KEY[:12] + struct.pack("<2i", 33, 64) + KEY[20:]),
            "rows of 33 are no blocks of 32",
        ),
    ],
    ids=["given up", "unknown", "old", "truncated", "rows"],
)
def test_rwkv_cpp_quantized_refusals(tmp_path, change, message):
    path = write_rwkv_cpp(tmp_path / "q4.bin", synthetic_checkpoint("4", layers=1, hidden_size=64), "Q4_0")
    data = path.read_bytes()
    assert KEY in data
    path.write_bytes(change(data))
    with pytest.raises(UserError, match=message) as raised:
        open_checkpoint(str(path))
    assert str(raised.value).count(". ") == 0


def test_rwkv_cpp_header_of_another_size(tmp_path):
    """The tensors are what counts: none is cut to what the header says."""
    weights = synthetic_checkpoint("5.2", hidden_size=64, head_size=32, layers=1)
    path = write_rwkv_cpp(tmp_path / "model.bin", weights)
    data = bytearray(path.read_bytes())
    data[12:16] = struct.pack("<i", 128)
    path.write_bytes(data)
    _, _, tensors = resolve(open_checkpoint(str(path)))
    found, expected = (each["blocks.0.att.time_decay"] for each in (tensors, weights))
    np.testing.assert_allclose(found.read().reshape(expected.shape), expected, rtol=2e-5, atol=2e-5)


def test_rwkv_cpp_holds_a_tensor_twice(tmp_path):
    path = write_rwkv_cpp(tmp_path / "model.bin", synthetic_checkpoint("4", layers=1, hidden_size=64))
    data = path.read_bytes()
    path.write_bytes(data + data[24:])
    with pytest.raises(UserError, match="is damaged: it holds emb.weight twice; convert or download it again"):
        open_checkpoint(str(path))


def test_rwkv_cpp_truncated(tmp_path):
    data = write_rwkv_cpp(tmp_path / "model.bin", synthetic_checkpoint("5.2", layers=1, hidden_size=64)).read_bytes()
    whole = len(open_checkpoint(str(tmp_path / "model.bin")).tensors)
    for size in range(4, len(data), 1499):
        (tmp_path / "cut.bin").write_bytes(data[:size])
        try:
            found = len(open_checkpoint(str(tmp_path / "cut.bin")).tensors)
        except UserError as error:
            assert "truncated" in str(error)
        else:
            assert found < whole  # cut between two tensors: the missing ones are listed when the model is checked


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="needs the models of rwkv.cpp's own tests in ../shared/golden")
@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("tiny-rwkv-4v0-660K-FP32.bin", RWKVConfig("4", 256, 128, 4, 256)),
        ("tiny-rwkv-4v0-660K-FP16.bin", RWKVConfig("4", 256, 128, 4, 256)),
        ("tiny-rwkv-5v2-730K-FP32.bin", RWKVConfig("5.2", 256, 64, 12, 256, head_size=8)),
    ],
)
def test_rwkv_cpp_own_models(file, expected):
    config, _, tensors = resolve(open_checkpoint(str(GOLDEN / file)))
    assert config == expected
    assert all(np.isfinite(tensor.read()).all() for tensor in tensors.values())

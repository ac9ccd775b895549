"""BlinkDL's ``.pth`` and rwkv.cpp's file, against what reads and writes them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from rwkv_mlc.cli.main import main
from rwkv_mlc.conversion.pth import ALIGNMENT, write_pth
from rwkv_mlc.conversion.tensors import OutputTensor
from rwkv_mlc.models import GENERATIONS
from rwkv_mlc.weights import open_checkpoint
from rwkv_mlc.weights.checkpoint import LazyTensor
from rwkv_mlc.weights.pth import read_pth
from support.checkpoint_layouts import write_pth as write_with_torch
from support.paths import GOLDEN
from support.rwkv_cpp import write_rwkv_cpp
from support.synthetic import synthetic_checkpoint

IN_RWKV_CPP = [name for name, generation in GENERATIONS.items() if generation.in_rwkv_cpp]
SHAPE = {"hidden_size": 64, "layers": 2, "head_size": 32}


def lazy(array: np.ndarray) -> LazyTensor:
    return LazyTensor(array.shape, "float32", lambda: array)


@pytest.mark.parametrize("mapped", [False, True])
def test_torch_loads_what_is_written(tmp_path, mapped):
    """Of every type, with axes of every length, each where ``torch.load`` can map it."""
    rng = np.random.default_rng(0)
    types = {"float64": np.float64, "float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
    shapes = [(3,), (1, 1, 5), (2, 3, 4), (1,), (300, 2)]
    arrays = {
        f"ä.{dtype}.{i}": rng.normal(size=shape).astype(numpy).astype(np.float64)
        for dtype, numpy in types.items()
        for i, shape in enumerate(shapes)
    }
    tensors = [OutputTensor(name, a.shape, name.split(".")[1], lazy(a)) for name, a in arrays.items()]
    path = tmp_path / "model.pth"
    write_pth(path, tensors)
    found = torch.load(path, weights_only=True, mmap=mapped)
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert str(found[name].dtype) == f"torch.{name.split('.')[1]}" and found[name].is_contiguous()
        assert np.array_equal(found[name].double().numpy(), array), name
        assert np.array_equal(read_pth(path)[name].read(), array), name
        assert found[name].data_ptr() % ALIGNMENT == 0
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def test_a_file_is_the_same_again(tmp_path):
    tensors = [OutputTensor("a", (2, 3), "float32", lazy(np.ones((2, 3))))]
    for name in "xy":
        write_pth(tmp_path / name, tensors)
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


@pytest.mark.parametrize("kind", ["FP16", "FP32"])
@pytest.mark.parametrize("generation", IN_RWKV_CPP)
@pytest.mark.parametrize("head_size", [32, 64], ids=["2 heads", "1 head"])
def test_rwkv_cpp(tmp_path, generation, kind, head_size):
    """The file that its converter writes: header, names, shapes and types of all tensors, and their values."""
    tensors = synthetic_checkpoint(generation, **SHAPE | {"head_size": head_size})
    source = write_with_torch(tmp_path / "model.pth", tensors, "float32")
    assert main(["convert-rwkv-cpp", str(source), str(tmp_path / "ours.bin"), "--dtype", kind]) == 0
    ours, theirs = contents(tmp_path / "ours.bin"), contents(write_rwkv_cpp(tmp_path / "theirs.bin", tensors, kind))
    assert ours["header"] == theirs["header"] and ours.keys() == theirs.keys()
    for name in ours.keys() - {"header"}:
        (shape, number, data), (expected_shape, expected_number, expected) = ours[name], theirs[name]
        assert (shape, number) == (expected_shape, expected_number), name
        if name.endswith((".time_decay", ".time_first")):
            np.testing.assert_allclose(data, expected, rtol=3e-7, err_msg=name)
        else:
            np.testing.assert_array_equal(data, expected, err_msg=name)
    for name, tensor in open_checkpoint(str(tmp_path / "ours.bin")).tensors.items():
        if not name.endswith((".time_decay", ".time_first")):
            stored = tensors[name].astype(np.float16 if tensor.dtype == "float16" else np.float32)
            np.testing.assert_array_equal(tensor.read(), stored.reshape(tensor.shape).astype(np.float32), err_msg=name)
    again = ["convert-rwkv-cpp", str(tmp_path / "ours.bin"), str(tmp_path / "again.bin"), "--dtype", kind]
    assert main(again) == 0
    assert (tmp_path / "again.bin").read_bytes() == (tmp_path / "ours.bin").read_bytes()


def contents(path: Path) -> dict:
    """The header, and shape, type and values of every tensor of a file of floats."""
    data = path.read_bytes()
    found: dict = {"header": data[:24]}
    at = 24
    while at < len(data):
        axes, length, number = np.frombuffer(data, "<i4", 3, at)
        shape = np.frombuffer(data, "<i4", axes, at + 12)[::-1]
        at += 12 + 4 * int(axes)
        name = data[at : at + int(length)].decode()
        values = np.frombuffer(data, [np.float32, np.float16][number], int(shape.prod()), at + int(length))
        found[name] = tuple(map(int, shape)), int(number), values
        at += int(length) + values.nbytes
    return found


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="needs the models of rwkv.cpp's own tests in ../shared/golden")
@pytest.mark.parametrize(
    "file", ["tiny-rwkv-4v0-660K-FP32.bin", "tiny-rwkv-4v0-660K-FP16.bin", "tiny-rwkv-5v2-730K-FP32.bin"]
)
def test_rwkv_cpps_own_files_come_back_bit_for_bit(tmp_path, file):
    kind = file[-8:-4]
    assert main(["convert-rwkv-cpp", str(GOLDEN / file), str(tmp_path / file), "--dtype", kind]) == 0
    ours, theirs = contents(tmp_path / file), contents(GOLDEN / file)
    assert ours["header"][:4] == theirs["header"][:4] and ours["header"][8:] == theirs["header"][8:]
    assert ours.keys() == theirs.keys()
    for name in ours.keys() - {"header"}:
        assert ours[name][:2] == theirs[name][:2], name
        assert ours[name][2].tobytes() == theirs[name][2].tobytes(), name


def test_rwkv_cpp_does_not_know_7a(tmp_path, capfd):
    source = write_with_torch(tmp_path / "model.pth", synthetic_checkpoint("7a", **SHAPE), "float32")
    assert main(["convert-rwkv-cpp", str(source), str(tmp_path / "out.bin")]) == 2
    assert "rwkv.cpp does not know RWKV-7a" in capfd.readouterr().err
    assert main(["convert-pth", str(source), str(tmp_path / "back.pth")]) == 0
    back, whole = (torch.load(path, weights_only=True) for path in (tmp_path / "back.pth", source))
    assert back.keys() == whole.keys() and all(torch.equal(back[name], whole[name]) for name in whole)

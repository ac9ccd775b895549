from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path

import numpy as np
import pytest

from rwkv_mlc.artifact import shards
from rwkv_mlc.artifact.shards import ShardWriter, read_index
from rwkv_mlc.building import convert
from rwkv_mlc.building.convert import convert_weights
from rwkv_mlc.errors import UserError
from rwkv_mlc.models import GENERATIONS, ModelOptions, resolve
from rwkv_mlc.quantization.schemes import SCHEMES, get_scheme
from rwkv_mlc.weights.checkpoint import Checkpoint, LazyTensor
from support.synthetic import synthetic_checkpoint


def in_memory(tensors: dict[str, np.ndarray]) -> Checkpoint:
    lazy = {name: LazyTensor(a.shape, str(a.dtype), lambda a=a: a.copy()) for name, a in tensors.items()}
    return Checkpoint("synthetic", "memory", "synthetic", lazy)


def written(folder: Path) -> dict[str, np.ndarray]:
    return {name: array for shard in read_index(folder) for name, array in shard.arrays().items()}


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("generation", GENERATIONS)
def test_shards_hold_every_quantized_parameter_in_order(generation, name, tmp_path):
    checkpoint, scheme = in_memory(synthetic_checkpoint(generation)), get_scheme(name)
    result = convert_weights(checkpoint, scheme, tmp_path)
    config, parameters, tensors = resolve(checkpoint)
    expected = {}
    for parameter in parameters:
        expected |= scheme.quantize(parameter, parameter.convert(tensors[parameter.source].read()))
    found = written(tmp_path)
    assert list(found) == list(expected)
    for key, array in expected.items():
        assert found[key].dtype == array.dtype
        np.testing.assert_array_equal(found[key], array)
    assert result.config == config
    assert (result.tensors, result.nbytes) == (len(expected), sum(array.nbytes for array in expected.values()))
    assert result.parameters == sum(np.prod(parameter.shape) for parameter in parameters)


def test_names_and_values_of_version_5_2(tmp_path):
    tensors = synthetic_checkpoint("5.2")
    convert_weights(in_memory(tensors), get_scheme("q4f16_1"), tmp_path)
    found = written(tmp_path)
    assert len(found) == 3 * 30 + 8
    assert found["model.blocks.1.attention.gate.q_weight"].shape == (128, 16)
    assert found["model.blocks.1.attention.gate.q_scale"].shape == (128, 4)
    decay = np.exp(-np.exp(tensors["blocks.2.att.time_decay"].astype(np.float64)))
    np.testing.assert_array_equal(found["model.blocks.2.attention.time_decay"], decay.astype(np.float32))
    np.testing.assert_array_equal(found["model.blocks.0.pre_ln.weight"], tensors["blocks.0.ln0.weight"])


def test_both_indexes_and_their_metadata(tmp_path):
    result = convert_weights(in_memory(synthetic_checkpoint("4")), get_scheme("q8f16_1"), tmp_path)
    index = json.loads((tmp_path / "tensor-cache.json").read_text(encoding="utf-8"))
    assert (tmp_path / "ndarray-cache.json").read_bytes() == (tmp_path / "tensor-cache.json").read_bytes()
    assert index["metadata"] == {
        "ParamSize": result.tensors,
        "ParamBytes": result.nbytes,
        "BitsPerParam": 8 * result.nbytes / result.parameters,
    }
    for shard in index["records"]:
        data = (tmp_path / shard["dataPath"]).read_bytes()
        assert (len(data), hashlib.md5(data).hexdigest()) == (shard["nbytes"], shard["md5sum"])


@pytest.mark.parametrize("capacity", [1 << 12, 1 << 15, 1 << 18])
def test_files_are_those_of_tvm(capacity, tmp_path, monkeypatch):
    tvmjs = pytest.importorskip("tvm.contrib.tvmjs")
    monkeypatch.setattr(shards, "SHARD_CAPACITY", capacity)
    rng = np.random.default_rng(0)
    dtypes = [np.float32, np.float16, np.uint32]
    tensors = {
        f"model.{i}.weight": (1000 * rng.random(tuple(rng.integers(1, 90, 2)))).astype(dtypes[i % 3]) for i in range(40)
    }
    writer = ShardWriter(tmp_path)
    for name, array in tensors.items():
        writer.add(name, array)
    writer.finish(1)
    cap = capacity / (1 << 20)
    tvmjs.dump_tensor_cache(tensors, str(tmp_path / "tvm"), "raw", shard_cap_mb=cap, show_progress=False)
    found = json.loads((tmp_path / "tensor-cache.json").read_text(encoding="utf-8"))
    expected = json.loads((tmp_path / "tvm" / "tensor-cache.json").read_text(encoding="utf-8"))
    assert found["records"] == expected["records"]
    for shard in found["records"]:
        assert (tmp_path / shard["dataPath"]).read_bytes() == (tmp_path / "tvm" / shard["dataPath"]).read_bytes()
    loaded, _ = tvmjs.load_tensor_cache(str(tmp_path), pytest.importorskip("tvm").cpu())
    for name, array in tensors.items():
        np.testing.assert_array_equal(loaded[name].numpy(), array)


def test_shards_of_32_megabytes(tmp_path):
    writer = ShardWriter(tmp_path)
    for name, megabytes in [("a", 20), ("b", 15), ("c", 20), ("d", 40), ("e", 1)]:
        writer.add(name, np.zeros(megabytes << 18, np.float32))
    writer.finish(1)
    contents = [[record.name for record in shard.records] for shard in writer.shards]
    assert contents == [["a"], ["c"], ["d"], ["b", "e"]]


def test_progress_counts_stored_tensors(tmp_path):
    calls = []
    scheme = get_scheme("q4f16_2")
    result = convert_weights(
        in_memory(synthetic_checkpoint("5.1")), scheme, tmp_path, progress=lambda *args: calls.append(args)
    )
    assert [call[0] for call in calls] == list(range(1, result.tensors + 1))
    assert {call[1] for call in calls} == {result.tensors}
    assert [call[2] for call in calls] == list(written(tmp_path))
    assert sum(call[3] for call in calls) == result.nbytes


def test_memory_is_bounded(tmp_path, monkeypatch):
    """No more float32 bytes are read ahead than the budget, and every tensor is read once."""
    tensors = synthetic_checkpoint("5.2", layers=6)
    monkeypatch.setattr(convert, "MEMORY_BUDGET", budget := 300_000)
    ahead, most, reads, lock = 0, 0, [], threading.Lock()

    def lazy(name: str, array: np.ndarray) -> LazyTensor:
        def read() -> np.ndarray:
            nonlocal ahead, most
            with lock:
                ahead, most = ahead + array.nbytes, max(most, ahead + array.nbytes)
                reads.append(name)
            return array.copy()

        return LazyTensor(array.shape, "float32", read)

    def progress(i: int, n: int, name: str, nbytes: int) -> None:
        nonlocal ahead
        with lock:
            ahead -= nbytes

    checkpoint = Checkpoint("synthetic", "memory", "synthetic", {name: lazy(name, a) for name, a in tensors.items()})
    convert_weights(checkpoint, get_scheme("q0f32"), tmp_path, progress=progress, threads=4)
    assert sorted(reads) == sorted(tensors)
    assert most <= budget + max(array.nbytes for array in tensors.values())


def test_head_size_divisor_reaches_the_config(tmp_path):
    checkpoint = in_memory(synthetic_checkpoint("5.2"))
    result = convert_weights(checkpoint, get_scheme("q4f16_1"), tmp_path, ModelOptions(head_size_divisor=1))
    assert result.config.head_size_divisor == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["blocks.1.att.key.weight", "blocks.0.att.time_decay", "emb.weight"])
def test_nan_and_infinity_are_refused_by_name(name, value, tmp_path):
    tensors = synthetic_checkpoint("5.2")
    tensors[name].reshape(-1)[5] = value
    with pytest.raises(UserError, match=f"{name} holds NaN or infinite"):
        convert_weights(in_memory(tensors), get_scheme("q4f16_1"), tmp_path)
    assert not (tmp_path / "tensor-cache.json").exists()

"""Checkpoints of every other format, presets, and what is no checkpoint at all."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from rwkv_mlc.config import RWKVConfig
from rwkv_mlc.data_files import config_names
from rwkv_mlc.errors import UserError
from rwkv_mlc.models import GENERATIONS, ModelOptions, Parameter, detect_config, resolve
from rwkv_mlc.weights import open_checkpoint
from rwkv_mlc.weights.parameters import map_parameters
from rwkv_mlc.weights.random import load_preset, random_checkpoint
from support.build_inputs import huggingface_name, write_index
from support.checkpoint_layouts import DTYPES, LAYOUTS
from support.compiled import in_memory
from support.hub_server import serve_hub
from support.rwkv_cpp import write_rwkv_cpp
from support.synthetic import synthetic_checkpoint


def assert_equal(checkpoint, weights, **tolerance):
    """The checkpoint holds exactly these names, shapes and values, and fits its generation."""
    assert checkpoint.shapes == {name: array.shape for name, array in weights.items()}
    for name, array in weights.items():
        found = checkpoint.tensors[name].read()
        assert found.dtype in (np.float32, np.float64) and found.shape == array.shape
        np.testing.assert_allclose(found, array, err_msg=name, **(tolerance or {"rtol": 0}))
    resolve(checkpoint)


# Hugging Face


def write_folder(folder: Path, weights: dict[str, np.ndarray], config: dict | None = None) -> Path:
    folder.mkdir()
    save_file({huggingface_name(name): array for name, array in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "rwkv5"}), encoding="utf-8")
    return folder


@pytest.mark.parametrize("generation", GENERATIONS)
def test_folder(tmp_path, generation):
    weights = synthetic_checkpoint(generation)
    folder = write_folder(tmp_path / "rwkv-0.1b", weights, {"context_length": 2048, "head_size_divisor": 4})
    checkpoint = open_checkpoint(str(folder))
    assert_equal(checkpoint, weights)
    assert (checkpoint.name, checkpoint.format) == ("rwkv-0.1b", "huggingface")
    assert checkpoint.files == [folder / "model.safetensors"]
    config, _, _ = resolve(checkpoint)
    assert (config.generation, config.context_length, config.head_size_divisor) == (generation, 2048, 4)
    assert resolve(checkpoint, ModelOptions(head_size_divisor=1))[0].head_size_divisor == 1


@pytest.mark.parametrize("generation, layout", [(g, name) for name, (built, *_) in LAYOUTS.items() for g in built])
@pytest.mark.parametrize("ranks", [(12, 10, 14, 20), (128, 96, 128, 128)])
def test_layouts(generation, layout, ranks, tmp_path):
    """Whose matrices of low rank are the other way round, which square ones do not show."""
    _, dtypes, write = LAYOUTS[layout]
    tensors = {name: a.astype(DTYPES[dtypes[-1]]) for name, a in synthetic_checkpoint(generation, ranks=ranks).items()}
    tensors = {name: array.astype(np.float32) for name, array in tensors.items()}
    config, parameters, found = resolve(open_checkpoint(str(write(tmp_path / "model", tensors, dtypes[-1]))))
    expected, _, originals = resolve(in_memory(tensors))
    assert config == expected
    for p in parameters:
        ours, theirs = (p.convert(each[p.source].read()) for each in (found, originals))
        np.testing.assert_array_equal(ours, theirs, err_msg=p.source)


def test_folder_without_lengths(tmp_path):
    checkpoint = open_checkpoint(str(write_folder(tmp_path / "hf", synthetic_checkpoint("4"), {"vocab_size": 97})))
    assert checkpoint.context_length is None and checkpoint.head_size_divisor is None


@pytest.mark.parametrize("shard_size", ["1GB", "100KB"])
def test_transformers_rwkv4(tmp_path, shard_size):
    """A model that transformers itself writes, in one file and in shards."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = transformers.RwkvForCausalLM(
        transformers.RwkvConfig(vocab_size=61, hidden_size=32, num_hidden_layers=3, context_length=256)
    )
    model.save_pretrained(tmp_path / "hf", max_shard_size=shard_size)
    checkpoint = open_checkpoint(str(tmp_path / "hf"))
    assert (len(checkpoint.files) > 1) == (shard_size == "100KB")
    config, _, _ = resolve(checkpoint)
    assert config == RWKVConfig("4", 61, 32, 3, 128, context_length=256, rescale_every=6)
    state = model.state_dict()
    assert len(state) == len(checkpoint.tensors)
    for name, tensor in checkpoint.tensors.items():
        np.testing.assert_array_equal(tensor.read(), state[huggingface_name(name)].numpy(), err_msg=name)


def test_transformers_tied_head(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.RwkvConfig(vocab_size=61, hidden_size=32, num_hidden_layers=2, tie_word_embeddings=True)
    model = transformers.RwkvForCausalLM(config)
    model.save_pretrained(tmp_path / "hf")
    checkpoint = open_checkpoint(str(tmp_path / "hf"))
    resolve(checkpoint)
    for name in ("emb.weight", "head.weight"):
        np.testing.assert_array_equal(
            checkpoint.tensors[name].read(), model.state_dict()["rwkv.embeddings.weight"].numpy()
        )


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_safetensors_dtypes(tmp_path, dtype):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch_file

    tensors = {
        name: torch.from_numpy(array).to(getattr(torch, dtype)) for name, array in synthetic_checkpoint("5.2").items()
    }
    save_torch_file(tensors, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(str(tmp_path / "model.safetensors"))
    assert checkpoint.format == "safetensors" and checkpoint.tensors["emb.weight"].dtype == dtype
    assert_equal(checkpoint, {name: tensor.float().numpy() for name, tensor in tensors.items()})


@pytest.mark.parametrize("sharded", [False, True])
def test_folder_with_bin(tmp_path, sharded):
    torch = pytest.importorskip("torch")
    weights = synthetic_checkpoint("5.2")
    tensors = {huggingface_name(name): torch.from_numpy(array) for name, array in weights.items()}
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    if sharded:
        weight_map = {name: f"pytorch_model-{1 + i % 2:05}-of-00002.bin" for i, name in enumerate(tensors)}
        for file in set(weight_map.values()):
            torch.save({name: tensor for name, tensor in tensors.items() if weight_map[name] == file}, tmp_path / file)
        index = json.dumps({"metadata": {}, "weight_map": weight_map})
        (tmp_path / "pytorch_model.bin.index.json").write_text(index, encoding="utf-8")
    else:
        torch.save(tensors, tmp_path / "pytorch_model.bin")
    checkpoint = open_checkpoint(str(tmp_path))
    assert len(checkpoint.files) == 1 + sharded
    assert_equal(checkpoint, weights)


def test_safetensors_come_before_bin(tmp_path):
    folder = write_folder(tmp_path / "hf", synthetic_checkpoint("4"))
    (folder / "pytorch_model.bin").write_bytes(b"not read")
    assert open_checkpoint(str(folder)).files == [folder / "model.safetensors"]


# The hub


def test_hub(tmp_path):
    weights = synthetic_checkpoint("5.2", layers=1)
    tensors = save({huggingface_name(name): array for name, array in weights.items()})
    config = json.dumps({"context_length": 1024}).encode()
    shards = {"a.safetensors": [], "b.safetensors": []}
    for i, name in enumerate(weights):
        shards[list(shards)[i % 2]].append(name)
    weight_map = {huggingface_name(name): file for file, names in shards.items() for name in names}
    repositories = {
        "me/whole": {
            "config.json": config,
            "model.safetensors": tensors,
            "pytorch_model.bin": b"not wanted",
            "onnx/model.safetensors": b"not wanted",
            "rwkv_vocab_v20230424.txt": b"1 '\\x00' 1\n2 '\\x01' 1\n",
            "README.md": b"not wanted",
        },
        "me/sharded": {
            "config.json": config,
            "model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode(),
            **{file: save({huggingface_name(name): weights[name] for name in names}) for file, names in shards.items()},
        },
        "me/one": {"README.md": b"", "RWKV-one.pth": tensors},
        "me/two": {"one.pth": tensors, "two.pth": tensors},
        "me/none": {"README.md": b""},
    }
    sources = [*repositories, "me/two:two.pth", "me/two:three.pth", "me/whole@gone", "me/absent", "me/absent/a.pth"]

    def client(endpoint: str, **environment: str) -> dict[str, str]:
        code = (
            "import sys, json\n"
            "from rwkv_mlc.errors import UserError\n"
            "from rwkv_mlc.weights import open_checkpoint\n"
            "def opened(argument):\n"
            "    source, _, revision = argument.partition('@')\n"
            "    try: c = open_checkpoint(source, revision=revision or None)\n"
            "    except UserError as error: return str(error)\n"
            "    total = sum(float(abs(t.read()).sum()) for t in c.tensors.values())\n"
            "    return f'{c.name} {len(c.files)} {len(c.tokenizer_files)} {c.context_length} {total:.3f}'\n"
            "print(json.dumps({source: opened(source) for source in sys.argv[1:]}))"
        )
        result = subprocess.run(
            [sys.executable, "-c", code, *sources],
            env=os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": endpoint} | environment,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    total = sum(float(abs(array).sum()) for array in weights.values())
    opened = {
        "me/whole": f"whole 1 1 1024 {total:.3f}",
        "me/sharded": f"sharded 2 0 1024 {total:.3f}",
        "me/one": f"RWKV-one 1 0 None {total:.3f}",
        "me/two:two.pth": f"two 1 0 None {total:.3f}",
    }
    with serve_hub(repositories) as (endpoint, downloaded):
        online = client(endpoint)
        assert online | opened == online
        assert online["me/two"].endswith("several checkpoints; name one of them: me/two:one.pth, me/two:two.pth.")
        assert "me/none holds no weights" in online["me/none"]
        assert "no repository me/absent on http://127.0.0.1" in online["me/absent"]
        assert "has no file three.pth" in online["me/two:three.pth"]
        assert online["me/absent/a.pth"].startswith("There is no file or folder me/absent/a.pth")
        assert "has no revision gone" in online["me/whole@gone"]
        wanted = ["RWKV-one.pth", "a.safetensors", "b.safetensors", "config.json", "config.json", "model.safetensors"]
        wanted += ["model.safetensors.index.json", "rwkv_vocab_v20230424.txt", "two.pth"]
        assert sorted(downloaded) == wanted

    offline = client("http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert offline | opened == offline
    assert "not in the cache" in offline["me/absent"]


# What stands beside a checkpoint


def test_tokenizer_files(tmp_path):
    save_file(synthetic_checkpoint("4"), tmp_path / "model.safetensors")
    world = "1 '\\x00' 1\n2 '\\x01' 1\n"
    for name, content in {
        "rwkv_vocab_v20230424.txt": world,
        "my_vocab.txt": "1 b'\\xff' 1\n",
        "vocab.txt": "[PAD]\n[UNK]\n",
        "notes.txt": world,
        "tokenizer.json": "{}",
        "20B_tokenizer.json": "{}",
    }.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    expected = ["my_vocab.txt", "rwkv_vocab_v20230424.txt", "20B_tokenizer.json", "tokenizer.json"]
    found = open_checkpoint(str(tmp_path / "model.safetensors")).tokenizer_files
    assert [path.name for path in found] == expected


# Formats are told by content


def test_names_do_not_matter(tmp_path):
    weights = synthetic_checkpoint("4")
    save_file(weights, tmp_path / "really-safetensors.pth")
    assert open_checkpoint(str(tmp_path / "really-safetensors.pth")).format == "safetensors"
    write_rwkv_cpp(tmp_path / "really-rwkv-cpp.safetensors", weights)
    assert open_checkpoint(str(tmp_path / "really-rwkv-cpp.safetensors")).format == "rwkv.cpp"
    (tmp_path / "really-safetensors.pth").rename(tmp_path / "rwkv-0.1b")
    assert open_checkpoint(str(tmp_path / "rwkv-0.1b")).name == "rwkv-0.1b"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no checkpoint.*it is empty"),
        (b"hello, this is a text file\n", "is no checkpoint"),
        (bytes(range(256)) * 8, "is no checkpoint"),
        (b"GGUF\x03\x00\x00\x00" + bytes(100), "names no architecture; convert or download it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer"),
        (b"PK\x03\x04" + bytes(100), "truncated or damaged"),
        (b"fmgg", "truncated or damaged"),
        (struct.pack("<6i", 0x67676D66, 7, 1, 1, 1, 0), "format version 7"),
        (struct.pack("<9i", 0x67676D66, 101, 1, 1, 1, 0, 1, 1, 99), "truncated or damaged"),
        (struct.pack("<6i", 0x67676D66, 101, 1, 1, 1, 99), "unknown data type 99"),
        (struct.pack("<Q", 50) + b'{"a": 1', "truncated or damaged"),
        (save({"emb.weight": np.ones(100, np.float32)})[:-1], "truncated or damaged"),
        (save({"emb.weight": np.ones(100, np.int64)}), "holds emb.weight as I64"),
    ],
)
def test_what_is_no_checkpoint(tmp_path, content, message):
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        open_checkpoint(str(path))
    assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize("source", ["/absent/model.pth", "absent.pth", "absent/model.pth", "./absent", "a/b/c", ""])
def test_missing_file(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no file or folder|holds no weights"):
        open_checkpoint(source)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"), "config.json is not JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json holds a list"),
        (
            lambda folder: (folder / "config.json").write_text('{"context_length": "4k"}'),
            "context_length as '4k', expected an integer",
        ),
        (
            lambda folder: (folder / "config.json").write_text('{"head_size_divisor": 0}'),
            "head_size_divisor as 0, expected at least 1",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights; expected one of"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "is no checkpoint"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "a") and write_index(folder, {}),
            "lacks weight_map; download it again",
        ),
        (
            lambda folder: (
                (folder / "model.safetensors").rename(folder / "b")
                and write_index(folder, {"weight_map": {"a": "../b"}})
            ),
            "weight_map.a as '../b', expected the name of a file in the same folder",
        ),
        (
            lambda folder: (
                (folder / "model.safetensors").rename(folder / "e")
                and write_index(folder, {"weight_map": {"a": "b", "c": "d"}})
            ),
            "lacks b, d, which model.safetensors.index.json names",
        ),
        (
            lambda folder: (
                [
                    (folder / name).write_bytes((folder / "model.safetensors").read_bytes())
                    for name in ("a.pth", "b.pth")
                ]
                and (folder / "model.safetensors").unlink()
            ),
            r"several checkpoints \(a.pth, b.pth\)",
        ),
    ],
)
def test_broken_folder(tmp_path, change, message):
    folder = write_folder(tmp_path / "hf", synthetic_checkpoint("4"))
    change(folder)
    with pytest.raises(UserError, match=message):
        open_checkpoint(str(folder))


def test_folder_with_a_single_pth(tmp_path):
    weights = synthetic_checkpoint("5.2")
    save_file(weights, tmp_path / "RWKV.pth")
    checkpoint = open_checkpoint(str(tmp_path))
    assert_equal(checkpoint, weights)


def test_unknown_tensors_stay_visible(tmp_path):
    save_file(synthetic_checkpoint("4") | {"blocks.0.adapter": np.ones(3, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"unknown blocks\.0\.adapter"):
        resolve(open_checkpoint(str(tmp_path / "model.safetensors")))


def test_hash_is_of_the_files(tmp_path):
    folder = write_folder(tmp_path / "hf", synthetic_checkpoint("4"))
    first = open_checkpoint(str(folder)).sha256()
    os.utime(folder / "model.safetensors", (time.time() + 5,) * 2)
    assert open_checkpoint(str(folder)).sha256() == first
    write_folder(tmp_path / "other", synthetic_checkpoint("4", seed=1))
    assert open_checkpoint(str(tmp_path / "other")).sha256() != first


# Presets and random weights


WORLD = {"0.1b": (12, 768), "0.4b": (24, 1024), "1.5b": (24, 2048), "3b": (32, 2560), "7b": (32, 4096)}
PRESETS = {
    **{f"rwkv-4-world-{size}": ("4", *shape) for size, shape in WORLD.items()},
    "rwkv-4-pile-14b": ("4", 40, 5120),
    **{f"rwkv-5-world-{size}": ("5.2", *shape) for size, shape in WORLD.items()},
    "rwkv-6-world-1.6b": ("6", 24, 2048, 32, 64),
    "rwkv-6-world-3b": ("6", 32, 2560, 32, 64),
    "rwkv-6-world-7b": ("6", 32, 4096, 64, 128),
    "rwkv-7-g1-0.1b": ("7", 12, 768, 64, 64, 32, 128),
    "rwkv-7-g1-0.4b": ("7", 24, 1024, 64, 64, 32, 128),
    "rwkv-7-g1-1.5b": ("7", 24, 2048, 96, 96, 64, 256),
    "rwkv-7-g1-2.9b": ("7", 32, 2560, 96, 96, 64, 320),
    "rwkv-7-g1-7.2b": ("7", 32, 4096, 128, 128, 96, 480),
    "rwkv-7-g1-13.3b": ("7", 61, 4096, 192, 192, 128, 384),
}
"""Generation, layers, channels and ranks by name."""


def test_presets():
    assert set(config_names("models")) == set(PRESETS)
    for name, expected in PRESETS.items():
        config = load_preset(name)
        ranks = config.own.values()
        assert (config.generation, config.num_hidden_layers, config.hidden_size, *ranks) == expected
        assert config.vocab_size == (50277 if "pile" in name else 65536)
        inner = 3.5 if config.generation in ("5.2", "6") else 4
        assert config.intermediate_size == int(config.hidden_size * inner) // 32 * 32
        assert (config.head_size, config.head_size_divisor) == (0 if config.generation == "4" else 64, 8)
        assert resolve(random_checkpoint(config, name, seed=0))[0] == config


def test_unknown_preset_lists_the_known():
    with pytest.raises(UserError, match="'rwkv-9-world'.*valid names are .*rwkv-5-world-1.5b"):
        load_preset("rwkv-9-world")


@pytest.mark.parametrize("generation", GENERATIONS)
def test_random_weights(generation):
    shape = {"vocab_size": 300, "hidden_size": 64, "layers": 2, "head_size": 16, "intermediate_size": 192}
    config = detect_config({name: array.shape for name, array in synthetic_checkpoint(generation, **shape).items()})
    first = {name: tensor.read() for name, tensor in random_checkpoint(config, "tiny", 3).tensors.items()}
    again = random_checkpoint(config, "tiny", 3)
    for name in reversed(first):
        array = again.tensors[name].read()
        assert array.dtype == np.float32 and array.shape == again.tensors[name].shape
        np.testing.assert_array_equal(array, first[name])
    other = random_checkpoint(config, "tiny", 4).tensors
    for name, array in first.items():
        if name.endswith("bias"):
            assert not array.any()
        elif array.ndim == 1 and name.endswith("weight"):
            assert (array == 1).all()
        else:
            assert len(np.unique(array)) > 0.9 * array.size
            assert not np.array_equal(other[name].read(), array)
        if array.ndim == 2 and name.endswith("weight"):
            assert array.std() * array.shape[1] ** 0.5 == pytest.approx(0.6, rel=0.05)
            assert abs(array.mean()) < 0.02
        if "time_mix" in name:
            assert array.min() >= 0 and array.max() <= 1
    assert not np.array_equal(first["blocks.0.att.key.weight"], first["blocks.1.att.key.weight"])
    assert random_checkpoint(config, "tiny", 3).sha256() != random_checkpoint(config, "tiny", 4).sha256()


# Work on parameters


def test_work_on_parameters_is_in_their_order():
    _, parameters, _ = resolve(random_checkpoint(load_preset("rwkv-5-world-0.1b"), "any", seed=0))
    seen = []
    names = map_parameters(lambda p: p.name, parameters, lambda done, total: seen.append((done, total)))
    assert names == [p.name for p in parameters] and len(names) > 100
    assert seen == [(i, len(names)) for i in range(1, len(names) + 1)]


def test_an_exception_ends_the_work_on_parameters():
    """Few of the jobs that had not begun are done before it is known."""
    _, parameters, _ = resolve(random_checkpoint(load_preset("rwkv-5-world-0.1b"), "any", seed=0))
    done = []

    def stop(count: int, total: int) -> None:
        raise KeyboardInterrupt

    def job(parameter: Parameter) -> None:
        done.append(parameter)
        time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt):
        map_parameters(job, parameters, stop)
    assert len(done) < len(parameters) / 2

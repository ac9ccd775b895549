from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rwkv_mlc.artifact import (
    CHAT_CONFIG,
    PARAMS,
    Artifact,
    BuildRecord,
    add_library,
    artifact_name,
    chat_config,
    library_name,
    staging,
    write_json,
)
from rwkv_mlc.artifact import shards as shards_module
from rwkv_mlc.building.convert import convert_weights
from rwkv_mlc.config import RWKVConfig
from rwkv_mlc.errors import UserError
from rwkv_mlc.models import GENERATIONS, ModelOptions, generation_of, resolve
from rwkv_mlc.quantization.schemes import get_scheme
from rwkv_mlc.schema import Conversation, TensorIndex
from rwkv_mlc.typed_json import read
from rwkv_mlc.weights.checkpoint import Checkpoint, LazyTensor
from support.synthetic import synthetic_checkpoint

TARGET = {"kind": "llvm", "mcpu": "cascadelake"}
TEMPLATE = {
    "name": "rwkv_world",
    "system_template": "User: hi\n\nAssistant: {system_message}\n\n",
    "system_message": "Hello.",
    "roles": {"user": "User", "assistant": "Assistant"},
    "seps": ["\n\n"],
    "role_content_sep": ": ",
    "role_empty_sep": ":",
    "stop_str": ["\n\n"],
    "stop_token_ids": [0],
}
TOKENIZER_FILES = {"world": ["tokenizer_model"], "pile": ["tokenizer.json"]}


def content_of(config: RWKVConfig, quantization: str, name: str, template: dict, kind: str, *sizes: int) -> dict:
    """The content of an artifact's chat config, as ``chat_config`` gives it for a tokenizer of a kind."""
    given = config, generation_of(config), get_scheme(quantization), name, conversation_of(template)
    return chat_config(*given, kind, TOKENIZER_FILES[kind], *sizes).to_dict()


def conversation_of(template: dict) -> Conversation:
    return Conversation.model_validate_json(json.dumps(template))


def in_memory(tensors: dict[str, np.ndarray]) -> Checkpoint:
    lazy = {name: LazyTensor(a.shape, str(a.dtype), lambda a=a: a.copy()) for name, a in tensors.items()}
    return Checkpoint("tiny", "memory", "tiny.pth", lazy)


def build_params(folder: Path, generation: str = "5.2", quantization: str = "q4f16_1", seed: int = 0) -> Checkpoint:
    """Everything of an artifact but a library."""
    checkpoint, scheme = in_memory(synthetic_checkpoint(generation, seed=seed)), get_scheme(quantization)
    name = artifact_name(checkpoint.name, quantization)
    config = convert_weights(checkpoint, scheme, folder / PARAMS).config
    (folder / PARAMS / "tokenizer_model").write_bytes(b"\x80")
    write_json(folder / PARAMS / CHAT_CONFIG, content_of(config, quantization, name, TEMPLATE, "world", 90, 64))
    BuildRecord.of(name, checkpoint, checkpoint.sha256(), config, scheme).write(folder)
    return checkpoint


def build_library(folder: Path, target: str = "llvm", content: bytes = b"code", features: tuple = ("avx2",)) -> None:
    built = folder.parent / "built.so"
    built.write_bytes(content)
    add_library(folder, built, target, TARGET, list(features))
    built.unlink()


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist") / "tiny-q4f16_1"
    with staging(folder) as staged:
        build_params(staged)
        build_library(staged)
    return folder


@pytest.fixture
def folder(pristine, tmp_path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / pristine.name))


def edit(path: Path, change) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")


# Layout and reading


def test_layout(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["build-record.json", "params", "tiny-q4f16_1-llvm.so"]
    assert sorted(path.name for path in (folder / PARAMS).iterdir()) == [
        "mlc-chat-config.json",
        "ndarray-cache.json",
        "params_shard_0.bin",
        "tensor-cache.json",
        "tokenizer_model",
    ]
    assert library_name("tiny-q4f16_1", "llvm", ".tar") == "tiny-q4f16_1-llvm.tar"


@pytest.mark.parametrize("quantization", ["q0f32", "q0f16", "q3f16_1", "q4f16_0", "q4f16_2"])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_parameters_come_back(generation, quantization, tmp_path):
    folder = tmp_path / "artifact"
    checkpoint = build_params(folder, generation, quantization)
    artifact = Artifact.open(folder)
    config, parameters, tensors = resolve(checkpoint)
    assert artifact.config == config
    assert artifact.scheme == get_scheme(quantization)
    assert artifact.tokenizer_files == [folder / PARAMS / "tokenizer_model"]
    stored, dequantized = artifact.parameters(), artifact.dequantized_parameters()
    assert list(stored) == [name for parameter in parameters for name in artifact.scheme.stored(parameter)]
    for parameter in parameters:
        source = parameter.convert(tensors[parameter.source].read())
        expected = artifact.scheme.quantize(parameter, source)
        for name, array in expected.items():
            assert not stored[name].flags.writeable
            np.testing.assert_array_equal(stored[name], array)
        np.testing.assert_array_equal(dequantized[parameter.name], artifact.scheme.dequantize(parameter, expected))


def test_files_are_written_as_they_were_read(folder, tmp_path):
    artifact = Artifact.open(folder)
    index = read(TensorIndex, folder / PARAMS / "tensor-cache.json", "")
    parts = {f"{PARAMS}/{CHAT_CONFIG}": artifact.chat_config, f"{PARAMS}/tensor-cache.json": index}
    for name, part in (parts | {"build-record.json": artifact.record}).items():
        write_json(tmp_path / "again.json", part.to_dict())
        assert (tmp_path / "again.json").read_bytes() == (folder / name).read_bytes()


def test_end_of_text(folder):
    assert Artifact.open(folder).chat_config.eos_token_ids == (0,)
    edit(folder / PARAMS / CHAT_CONFIG, lambda config: config.update(eos_token_id=[0, 11]))
    assert Artifact.open(folder).chat_config.eos_token_ids == (0, 11)


def test_sampling_defaults_are_those_that_the_file_gives(folder):
    def change(config):
        config.pop("penalty_decay")
        config.update(top_k=40, temperature=2)

    edit(folder / PARAMS / CHAT_CONFIG, change)
    assert Artifact.open(folder).chat_config.sampling == {
        "temperature": 2.0,
        "top_p": 0.3,
        "top_k": 40,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
        "repetition_penalty": 1.0,
    }


def test_params_folder_names_the_artifact_too(folder, monkeypatch):
    assert Artifact.open(folder / PARAMS).path == folder
    monkeypatch.chdir(folder)
    assert Artifact.open(".").name == Artifact.open("params").name == "tiny-q4f16_1"


def test_reading_needs_no_compiler(folder):
    code = (
        "import sys; from rwkv_mlc.artifact import Artifact; from rwkv_mlc.building import convert; "
        f"Artifact.open({str(folder)!r}).dequantized_parameters(); assert 'tvm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_opening_needs_no_models(folder):
    code = (
        "import sys; from rwkv_mlc.artifact import Artifact; "
        f"assert len(Artifact.open({str(folder)!r}).stored_tensors()) == 98; "
        "assert not sys.modules.keys() & {'tvm', 'rwkv_mlc.models', 'rwkv_mlc.weights'}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_stored_tensors_are_those_of_the_model(folder):
    artifact = Artifact.open(folder)
    stored = artifact.stored_tensors()
    assert stored == artifact.tensors()
    for name, array in artifact.parameters().items():
        np.testing.assert_array_equal(stored[name][0 : len(array)], array)


# Damage


@pytest.mark.parametrize("existing", [True, False])
def test_not_an_artifact(existing, tmp_path):
    path = tmp_path if existing else tmp_path / "nothing"
    with pytest.raises(UserError, match="is no artifact"):
        Artifact.open(path)


def test_missing_shard(folder):
    (folder / PARAMS / "params_shard_0.bin").unlink()
    with pytest.raises(UserError, match="lacks .*params_shard_0.bin"):
        Artifact.open(folder)


def test_truncated_shard(folder):
    shard = folder / PARAMS / "params_shard_0.bin"
    os.truncate(shard, size := shard.stat().st_size - 1)
    with pytest.raises(UserError, match=f"params_shard_0.bin is damaged: it has {size} bytes, expected {size + 1}"):
        Artifact.open(folder)


@pytest.mark.parametrize("opened_before", [False, True])
def test_corrupted_shard(folder, opened_before):
    if opened_before:
        Artifact.open(folder)
    shard = folder / PARAMS / "params_shard_0.bin"
    time = shard.stat().st_mtime_ns
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    os.utime(shard, ns=(time + 10**9, time + 10**9))
    for _ in range(2):
        with pytest.raises(UserError, match="params_shard_0.bin is damaged: its checksum differs"):
            Artifact.open(folder)


def test_checksums_are_computed_once(folder, monkeypatch):
    hashed, digest = [], shards_module.digest
    monkeypatch.setattr(shards_module, "digest", lambda path, kind: hashed.append(path) or digest(path, kind))
    for _ in range(2):
        Artifact.open(folder)
        assert [path.name for path in hashed] == ["params_shard_0.bin"]
    os.utime(folder / PARAMS / "params_shard_0.bin", ns=(1, 1))
    Artifact.open(folder)
    assert len(hashed) == 2


def test_unwritable_folder_is_read_all_the_same(folder, monkeypatch):
    def refuse(path, data):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(shards_module, "write_json", refuse)
    assert len(Artifact.open(folder).parameters()) == 98


@pytest.mark.parametrize("name", ["mlc-chat-config.json", "tensor-cache.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"{}"])
def test_damaged_json(folder, name, content):
    (folder / PARAMS / name).write_bytes(content)
    with pytest.raises(UserError, match=name.replace(".", r"\.") + "|configuration"):
        Artifact.open(folder)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.update(quantization="q5f16_1"), "Unknown quantization 'q5f16_1'"),
        (lambda c: c.update(quantization=4), "gives quantization as 4, expected a string"),
        (lambda c: c.pop("model_config"), "lacks model_config; write it again with rwkv-mlc gen-config"),
        (lambda c: c["model_config"].pop("vocab_size"), "lacks model_config.vocab_size"),
        (lambda c: c["model_config"].update(hidden_size="128"), "gives model_config.hidden_size as '128'"),
        (lambda c: c["model_config"].update(num_hidden_layers=-1), "gives model_config.num_hidden_layers as -1"),
        (lambda c: c["conv_template"].update(seps=[]), r"conv_template.seps as \[\], expected at least 1 entries"),
        (lambda c: c.update(eos_token_id="<eos>"), "gives eos_token_id as '<eos>', expected an integer"),
        (lambda c: c.update(tokenizer_files=["../x"]), r"gives tokenizer_files\[0\] as '../x', expected the name of a"),
        (lambda c: c.update(tokenizer_files=["tokenizer.json"]), "lacks its tokenizer .*tokenizer.json"),
    ],
)
def test_edited_chat_config(folder, change, message):
    edit(folder / PARAMS / CHAT_CONFIG, change)
    with pytest.raises(UserError, match=message):
        Artifact.open(folder)


def test_a_generation_of_another_version(folder):
    edit(folder / PARAMS / CHAT_CONFIG, lambda config: config["model_config"].update(generation="9"))
    with pytest.raises(UserError, match="Unknown RWKV generation '9'"):
        Artifact.open(folder).parameters()


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda shard: shard.update(dataPath="../../secret"),
            "dataPath as '../../secret', expected the name of a file",
        ),
        (lambda shard: shard.pop("md5sum"), r"lacks records\[0\].md5sum"),
        (lambda shard: shard["records"][3].update(byteOffset=1 << 40), "inside its [0-9]+ bytes"),
        (
            lambda shard: shard["records"][3].update(byteOffset=-4),
            r"records\[3\].byteOffset as -4, expected at least 0",
        ),
        (
            lambda shard: shard["records"][3].update(dtype="object"),
            r"records\[3\].dtype as 'object', expected 'float32', ",
        ),
        (
            lambda shard: shard["records"][3].update(shape=[-1, 128]),
            r"records\[3\].shape\[0\] as -1, expected at least 1",
        ),
        (lambda shard: shard["records"][3].update(shape=[1.5]), r"records\[3\].shape\[0\] as 1.5, expected an integer"),
        (
            lambda shard: shard["records"][3].update(shape=[9, 9]),
            "expected the bytes of .* as its shape and dtype give",
        ),
        (lambda shard: shard["records"][3].update(format="f32-to-bf16"), "as 'f32-to-bf16', expected 'raw'"),
        (lambda shard: shard.update(nbytes="many"), r"records\[0\].nbytes as 'many', expected an integer"),
    ],
)
def test_edited_index(folder, change, message):
    edit(folder / PARAMS / "tensor-cache.json", lambda index: change(index["records"][0]))
    with pytest.raises(UserError, match=f"tensor-cache.json .*{message}.*; build the artifact again") as error:
        Artifact.open(folder)
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)


def test_parameters_that_do_not_fit_are_listed_at_once(folder):
    def change(index):
        records = index["records"][0]["records"]
        records[0]["name"] = "model.surplus"
        records[1]["shape"].reverse()
        records[2]["dtype"] = "uint32"

    edit(folder / PARAMS / "tensor-cache.json", change)
    with pytest.raises(UserError) as error:
        Artifact.open(folder).parameters()
    assert "4 tensors are wrong: missing model.embeddings.q_weight; unknown model.surplus; " in str(error.value)
    assert "model.embeddings.q_scale is float16 [4, 97], expected float16 [97, 4]" in str(error.value)
    assert "model.blocks.0.pre_ln.weight is uint32 [128], expected float32 [128]" in str(error.value)


def test_another_scheme_in_the_chat_config_does_not_fit(folder):
    edit(folder / PARAMS / CHAT_CONFIG, lambda config: config.update(quantization="q4f32_1"))
    with pytest.raises(UserError, match="q_scale is float16 .* expected float32"):
        Artifact.open(folder).parameters()


# Libraries and the build record


def test_record_of_a_build(folder):
    record = Artifact.open(folder).record
    assert (record.name, record.source, record.source_format) == ("tiny-q4f16_1", "tiny.pth", "memory")
    assert (record.generation, record.quantization, record.head_size_divisor) == ("5.2", "q4f16_1", 8)
    assert record.source_sha256 == in_memory({}).sha256()
    assert {"rwkv_mlc", "numpy"} <= record.versions.keys()
    assert record.time.endswith("+00:00")
    data = json.loads((folder / "build-record.json").read_text(encoding="utf-8"))
    assert data["libraries"]["llvm"]["file"] == "tiny-q4f16_1-llvm.so"
    assert BuildRecord.read(folder) == record


def test_two_libraries_share_the_parameters(folder):
    before = snapshot(folder / PARAMS)
    build_library(folder, "llvm-avx512", b"other code", ("avx512vnni", "avx512f"))
    artifact = Artifact.open(folder)
    assert list(artifact.libraries()) == ["llvm", "llvm-avx512"]
    assert artifact.library("llvm").path.read_bytes() == b"code"
    library = artifact.library("llvm-avx512")
    assert library.path == folder / "tiny-q4f16_1-llvm-avx512.so"
    assert library.path.read_bytes() == b"other code"
    assert (library.target, library.cpu_features) == (TARGET, ["avx512f", "avx512vnni"])
    after = snapshot(folder / PARAMS)
    after.pop(".verified.json")
    assert after == before


def test_a_library_is_replaced(folder):
    build_library(folder, content=b"new code")
    artifact = Artifact.open(folder)
    assert list(artifact.libraries()) == ["llvm"]
    assert artifact.library("llvm").path.read_bytes() == b"new code"


def test_a_library_of_another_suffix_leaves_no_old_file(folder):
    (folder.parent / "built.tar").write_bytes(b"objects")
    add_library(folder, folder.parent / "built.tar", "llvm", TARGET, [])
    assert Artifact.open(folder).library("llvm").path.name == "tiny-q4f16_1-llvm.tar"
    assert not (folder / "tiny-q4f16_1-llvm.so").exists()


def test_missing_target_names_the_command(folder):
    with pytest.raises(UserError, match=r"for cuda \(available: llvm\); run rwkv-mlc compile .* --target cuda"):
        Artifact.open(folder).library("cuda")


def test_damaged_or_missing_library(folder):
    library = folder / "tiny-q4f16_1-llvm.so"
    library.write_bytes(b"c0de")
    with pytest.raises(UserError, match="llvm.so is damaged: its checksum differs; run rwkv-mlc compile"):
        Artifact.open(folder).library("llvm")
    library.unlink()
    with pytest.raises(UserError, match="llvm.so is missing; run rwkv-mlc compile"):
        Artifact.open(folder).library("llvm")


@pytest.mark.parametrize("content", [None, b"{", b"{}", b'{"libraries": {"llvm": 3}}', b'{"libraries": {"llvm": {}}}'])
def test_damaged_record(folder, content):
    record = folder / "build-record.json"
    record.unlink() if content is None else record.write_bytes(content)
    with pytest.raises(UserError, match="build-record.json"):
        Artifact.open(folder).libraries()


def test_record_of_a_newer_version_is_read(folder):
    edit(folder / "build-record.json", lambda record: record.update(mood="good"))
    edit(folder / "build-record.json", lambda record: record["libraries"]["llvm"].update(color="red"))
    assert Artifact.open(folder).library("llvm").cpu_features == ["avx2"]


def test_parameters_are_reused_for_the_same_source_and_scheme(folder):
    record = BuildRecord.read(folder)
    config = Artifact.open(folder).config
    scheme, sha256 = get_scheme("q4f16_1"), in_memory({}).sha256()
    assert record.params_match(sha256, config, scheme)
    assert not record.params_match("0" * 64, config, scheme)
    assert not record.params_match(sha256, config, get_scheme("q4f16_2"))
    other = RWKVConfig.from_dict({**config.to_dict(), "head_size_divisor": 1})
    assert not record.params_match(sha256, other, scheme)


# Builds that die


def test_a_finished_build_replaces_the_artifact(folder):
    with staging(folder) as staged:
        build_params(staged, seed=1)
        expected = snapshot(staged)
    assert snapshot(folder) == expected
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("existing", [True, False])
def test_a_failed_build_leaves_the_old_artifact_or_none(folder, existing):
    if not existing:
        shutil.rmtree(folder)
    before = snapshot(folder.parent)
    with pytest.raises(RuntimeError), staging(folder) as staged:
        (staged / "half").write_text("written", encoding="utf-8")
        raise RuntimeError
    assert snapshot(folder.parent) == before
    assert folder.exists() == existing


@pytest.mark.parametrize("existing", [True, False])
def test_a_full_disk_leaves_the_old_artifact_or_none(folder, existing, monkeypatch):
    if not existing:
        shutil.rmtree(folder)
    before = snapshot(folder.parent)
    monkeypatch.setattr(shards_module, "SHARD_CAPACITY", 1 << 15)
    original, room = Path.write_bytes, [3]

    def write_bytes(path: Path, data: bytes) -> int:
        if path.suffix == ".bin":
            room[0] -= 1
            if room[0] < 0:
                original(path, data[: len(data) // 2])
                raise OSError(errno.ENOSPC, "No space left on device")
        return original(path, data)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(UserError, match="disk that holds .* is full"), staging(folder) as staged:
        build_params(staged, seed=1)
    assert snapshot(folder.parent).keys() == before.keys()
    assert snapshot(folder.parent) == before


def test_a_full_disk_while_a_library_is_added(folder, monkeypatch):
    before = snapshot(folder)
    built = folder.parent / "built.so"
    built.write_bytes(b"new code")

    def copyfile(source, destination):
        Path(destination).write_bytes(b"new")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", copyfile)
    with pytest.raises(UserError, match="is full"):
        add_library(folder, built, "llvm", TARGET, [])
    assert snapshot(folder) == before
    Artifact.open(folder).library("llvm")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a signal that cannot be caught")
@pytest.mark.parametrize("existing", [True, False])
def test_a_killed_build_leaves_the_old_artifact_or_none(folder, existing):
    if not existing:
        shutil.rmtree(folder)
    before = snapshot(folder) if existing else {}
    code = (
        "import os, signal, sys; from pathlib import Path; from rwkv_mlc.artifact import staging\n"
        "with staging(Path(sys.argv[1])) as staged:\n"
        "    (staged / 'half').write_text('written')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", code, str(folder)]
    assert subprocess.run(command, cwd=Path(__file__).parents[2]).returncode == -signal.SIGKILL
    assert snapshot(folder) == before
    assert any(folder.parent.glob(".*"))
    with staging(folder) as staged:
        build_params(staged)
    assert not any(folder.parent.glob(".*"))
    assert not (folder / "half").exists()


def test_an_artifact_moved_aside_by_a_dead_build_comes_back(folder):
    before = snapshot(folder)
    folder.rename(folder.parent / f".{folder.name}.previous")
    with pytest.raises(RuntimeError), staging(folder):
        raise RuntimeError
    assert snapshot(folder) == before


def test_two_builds_at_once_are_refused(folder):
    with staging(folder) as staged:
        build_params(staged)
        with pytest.raises(UserError, match="Another process is building"), staging(folder):
            pass
        with pytest.raises(UserError, match="Another process is building"):
            build_library(folder)
    Artifact.open(folder)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "dist").write_text("a file", encoding="utf-8")
    with pytest.raises(UserError, match="Cannot write into .*dist"), staging(tmp_path / "dist" / "name"):
        pass


# The chat config


@pytest.mark.parametrize("generation", GENERATIONS)
def test_config_round_trips_through_the_chat_config(generation):
    config, _, _ = resolve(in_memory(synthetic_checkpoint(generation)), ModelOptions(head_size_divisor=4))
    content = content_of(config, "q4f16_1", "tiny-q4f16_1", TEMPLATE, "world", 90, 64)
    model = json.loads(json.dumps(content))["model_config"]
    assert RWKVConfig.from_dict(model) == config
    assert content["model_type"] == f"rwkv{generation[0]}"
    assert model["num_heads"] * model["head_size"] == (0 if generation == "4" else 128)


def test_chat_config_for_mlc_llm():
    config = RWKVConfig("5.2", 65536, 2048, 24, 7168, head_size=64)
    content = content_of(config, "q4f16_1", "RWKV-5-World-1B5-q4f16_1", TEMPLATE, "world", 65530, 4096)
    expected = {
        "version": "0.1.0",
        "model_type": "rwkv5",
        "quantization": "q4f16_1",
        "vocab_size": 65536,
        "active_vocab_size": 65530,
        "context_window_size": -1,
        "sliding_window_size": -1,
        "attention_sink_size": -1,
        "prefill_chunk_size": 4096,
        "tensor_parallel_shards": 1,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "repetition_penalty": 1.0,
        "tokenizer_files": ["tokenizer_model"],
        "conv_template": content["conv_template"] | TEMPLATE,
    }
    assert {key: content[key] for key in expected} == expected
    model = {"vocab_size": 65536, "hidden_size": 2048, "num_hidden_layers": 24, "head_size": 64, "num_heads": 32}
    model["prefill_chunk_size"] = 4096
    assert {key: content["model_config"][key] for key in model} == model
    assert content["tokenizer_info"]["token_postproc_method"] == "byte_fallback"
    assert 0 < content["top_p"] < 1


def test_chat_config_for_mlc_chat():
    """The keys that ``llm_chat.cc`` and ``conversation.cc`` of 2023 require, with the types that they insist on."""
    config = RWKVConfig("4", 50277, 768, 12, 3072, context_length=1024)
    content = content_of(config, "q4f16_1", "Raven-q4f16_1", TEMPLATE, "pile", 50277, 64)
    written = json.loads(json.dumps(content))
    for key in ("temperature", "repetition_penalty", "top_p", "shift_fill_factor"):
        assert type(written[key]) is float
    for key in ("vocab_size", "mean_gen_len", "max_gen_len", "max_window_size", "num_shards"):
        assert type(written[key]) is int
    assert written["use_presharded_weights"] is False
    assert written["model_lib"] == written["local_id"] == "Raven-q4f16_1"
    assert written["model_name"] == "Raven"
    assert written["model_category"] == "rwkv"
    assert written["max_gen_len"] == 1024
    assert written["tokenizer_info"]["token_postproc_method"] == "byte_level"
    assert written["conv_config"] == {
        "name": "rwkv_world",
        "system": "User: hi\n\nAssistant: Hello.",
        "roles": ["User", "Assistant"],
        "messages": [],
        "offset": 0,
        "separator_style": 0,
        "seps": ["\n\n"],
        "role_msg_sep": ": ",
        "role_empty_sep": ":",
        "stop_str": "\n\n",
        "stop_tokens": [0],
        "prefix_tokens": [],
        "add_bos": False,
    }


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_tokenizer_of_an_unknown_kind_has_no_chat_config(generation):
    config, _, _ = resolve(in_memory(synthetic_checkpoint(generation)))
    given = config, generation_of(config), get_scheme("q0f32"), "x-q0f32", conversation_of(TEMPLATE)
    with pytest.raises(KeyError, match="words"):
        chat_config(*given, "words", ["words.txt"], 90, 64)


def test_template_without_roles_is_a_plain_completion():
    template = {"name": "plain", "roles": {"user": "", "assistant": ""}, "seps": [""]}
    config = RWKVConfig("4", 50277, 768, 12, 3072)
    conversation = content_of(config, "q0f32", "x-q0f32", template, "pile", 50277, 64)["conv_config"]
    assert (conversation["separator_style"], conversation["stop_str"], conversation["system"]) == (2, "", "")


def test_messages_of_a_template_carry_the_names_of_the_roles():
    template = {**TEMPLATE, "messages": [["user", "Who?"], ["assistant", "Me."]]}
    config = RWKVConfig("4", 50277, 768, 12, 3072)
    conversation = content_of(config, "q0f32", "x-q0f32", template, "pile", 50277, 64)["conv_config"]
    assert conversation["messages"] == [["User", "Who?"], ["Assistant", "Me."]]
    assert conversation["offset"] == 2

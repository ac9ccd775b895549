"""``build`` and its parts, on a tiny model: what they write, what they reuse, what they refuse and leave as it was."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from safetensors.numpy import save, save_file

from rwkv_mlc import Engine, UserError, building
from rwkv_mlc import data_files as configs
from rwkv_mlc import tokenizer as tokenizer_module
from rwkv_mlc.artifact import CHAT_CONFIG, Artifact, add_library
from rwkv_mlc.artifact import record as record_module
from rwkv_mlc.cli.main import main
from rwkv_mlc.compiler import link as link_module
from rwkv_mlc.compiler import pipeline
from rwkv_mlc.machine.cpu_features import REQUIRED_FEATURES, host_architecture, host_features
from support.build_inputs import build_command, write_vocabulary
from support.hub_server import serve_hub
from support.paths import DEMO, DEMOS
from support.synthetic import synthetic_checkpoint

ROOT = Path(__file__).parents[2]
NAME = "tiny-q4f16_1"
TOKENS = [1, 5, 9, 2, 40, 77]
SHAPE = {"vocab_size": 97, "hidden_size": 64, "layers": 1}


def write_checkpoint(path: Path, tensors: dict[str, np.ndarray] | None = None, **shape) -> Path:
    """A ``.safetensors`` file with its vocabulary beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors or synthetic_checkpoint("5.2", **SHAPE | shape), path)
    write_vocabulary(path.with_name("rwkv_vocab.txt"))
    return path


def write_pth(path: Path, pickled: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)


def listing(folder: Path) -> dict[str, bytes | None]:
    """Every file, hidden ones too, with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def edit_record(folder: Path, **changes) -> None:
    path = folder / "build-record.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    record["libraries"]["llvm"] |= changes
    path.write_text(json.dumps(record), encoding="utf-8")


def logits(folder: Path) -> np.ndarray:
    engine = Engine(folder)
    return engine.prefill(TOKENS, engine.new_state())


def chat_config(folder: Path) -> dict:
    return json.loads((folder / "params" / CHAT_CONFIG).read_text(encoding="utf-8"))


def shard_identity(folder: Path) -> tuple[int, int]:
    status = (folder / "params" / "params_shard_0.bin").stat()
    return status.st_ino, status.st_mtime_ns


@pytest.fixture
def rwkv(capsys):
    """Runs a command; gives the exit code, and what it printed to stdout and stderr."""

    def run(*args: object) -> tuple[int, str, str]:
        capsys.readouterr()
        return main([str(arg) for arg in args]), *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def tiny(artifacts) -> Path:
    """The tiny checkpoint."""
    path = artifacts / "checkpoints" / "tiny.safetensors"
    with FileLock(artifacts / "tiny.lock"):
        return path if path.exists() else write_checkpoint(path)


@pytest.fixture(scope="session")
def built(tiny, artifacts) -> tuple[Path, str]:
    """Its artifact, built by ``build.py``, and what that printed; not to be changed."""
    folder, log = artifacts / "built", artifacts / "built.log"
    with FileLock(artifacts / "built.lock"):
        if not log.exists():
            command = [sys.executable, "build.py", *build_command(tiny, folder)[1:]]
            command += ["--target", "llvm", "--quantization", "q4f16_1", "--debug-dump"]
            result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            assert result.returncode == 0, result.stderr
            log.write_text(result.stdout, encoding="utf-8")
    return folder / NAME, log.read_text(encoding="utf-8")


@pytest.fixture
def dist(built, tmp_path) -> Path:
    """A folder of artifacts, with a copy of the built one in it."""
    shutil.copytree(built[0], tmp_path / "dist" / NAME)
    return tmp_path / "dist"


@pytest.fixture
def code_at_hand(monkeypatch):
    """Generates the tiny model's code once a session, for tests of what follows code generation."""
    generate = pipeline.compile_module

    def compile_module(module, target, dump_dir):
        assert dump_dir is None
        if not GENERATED:
            GENERATED.append(generate(module, target))
        return GENERATED[0]

    monkeypatch.setattr(pipeline, "compile_module", compile_module)


GENERATED: list = []


# What a build writes


def test_milestones_of_a_build(built, tiny):
    folder, log = built
    milestones = [
        "Target configured: {",
        f'Using path "{tiny}" for model "tiny": RWKV-5.2, 1 layers of 64',
        "Start computing and quantizing weights... This may take a while.",
        f"Start storing to cache {folder / 'params'}",
        "[0038/0038]",
        "Finish computing and quantizing weights.",
        "Total param size: ",
        f"All finished, 1 total shards committed, record saved to {folder / 'params' / 'tensor-cache.json'}",
        f"Finish exporting chat config to {folder / 'params' / CHAT_CONFIG}",
        "Start compiling for llvm... This may take a while.",
        f"Dump mod to {folder / 'debug' / '0-graph.py'}",
        f"Finish exporting to {folder / f'{NAME}-llvm.so'}",
        f"Finish building {folder}",
    ]
    lines = iter(log.splitlines())
    for milestone in milestones:
        assert any(line.startswith(milestone) for line in lines), f"{milestone} is missing or out of order in\n{log}"


def test_files_of_a_build(built):
    folder, _ = built
    written = {name for name in listing(folder) if not Path(name).name.startswith(".")}
    params = {"mlc-chat-config.json", "tensor-cache.json", "ndarray-cache.json", "params_shard_0.bin"}
    params |= {"rwkv_vocab.txt", "tokenizer_model"}
    dumps = {"debug/0-graph.py", "debug/1-merge.py", "debug/2-lower.py", "debug/3-memory.py", "debug/4-runtime.py"}
    index = {"debug/index.md", "debug/code-0.ll", "debug/kernels"}
    expected = {"params", "debug", "build-record.json", f"{NAME}-llvm.so"} | {f"params/{name}" for name in params}
    assert {name for name in written if not name.startswith("debug/kernels/")} == expected | dumps | index
    assert sorted(path.name for path in folder.parent.iterdir()) == [NAME]
    for name in dumps:
        assert "def decode(" in (folder / name).read_text(encoding="utf-8")
    assert np.isfinite(logits(folder)).all()


def test_a_second_build_reuses_the_parameters_and_keeps_other_libraries(dist, tiny, rwkv, tmp_path):
    folder = dist / NAME
    (tmp_path / "other.so").write_bytes(b"code of another target")
    add_library(folder, tmp_path / "other.so", "other", {"kind": "other"}, [])
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    before, shard = logits(folder), shard_identity(folder)
    target = "llvm -opt-level=1"
    code, out, _ = rwkv(*build_command(tiny, dist, "--target", target, "--template", "plain", "--max-seq-len", "99"))
    assert code == 0
    assert f"Reuse parameters in {folder / 'params'}. You can use --use-cache=0 to convert them again" in out
    assert "quantizing" not in out
    assert shard_identity(folder) == shard
    libraries = Artifact.open(folder).libraries()
    assert set(libraries) == {"llvm", "other"}
    assert libraries["llvm"].target["opt-level"] == 1
    assert libraries["other"].path.read_bytes() == b"code of another target"
    assert chat_config(folder)["conv_template"]["name"] == "plain"
    assert chat_config(folder)["model_config"]["context_length"] == 99
    assert (folder / "notes.txt").exists()
    assert np.allclose(logits(folder), before, rtol=1e-4, atol=1e-4)


def test_the_three_parts_equal_a_build(built, tiny, rwkv, tmp_path, code_at_hand):
    folder = tmp_path / NAME
    assert rwkv("convert-weight", "--model", tiny, "-o", folder)[0] == 0
    assert rwkv("gen-config", "--model", tiny, "-o", folder)[0] == 0
    assert rwkv("compile", folder)[0] == 0
    ours, theirs = listing(folder / "params"), listing(built[0] / "params")
    for name in theirs.keys() - {".verified.json"}:
        assert ours[name] == theirs[name], name
    assert np.array_equal(logits(folder), logits(built[0]))


def test_the_configuration_may_come_before_the_parameters(built, tiny, rwkv, tmp_path):
    folder = tmp_path / NAME
    assert rwkv("gen-config", "--model", tiny, "--template", "plain", "-o", folder)[0] == 0
    assert rwkv("convert-weight", "--model", tiny, "-o", folder)[0] == 0
    assert chat_config(folder)["conv_template"]["name"] == "plain"
    assert Artifact.open(folder).parameters()


def test_converting_and_compiling_apart(built, tiny, rwkv, tmp_path, code_at_hand):
    folder = tmp_path / NAME
    code, out, _ = rwkv(*build_command(tiny, tmp_path, "--convert-weights-only"))
    assert code == 0 and "Target configured" not in out
    assert Artifact.open(folder).libraries() == {}
    with pytest.raises(UserError, match="has no library for llvm"):
        Engine(folder)
    before = listing(folder / "params")
    code, out, _ = rwkv(*build_command(tiny, tmp_path, "--build-model-only"))
    assert code == 0 and "parameters" not in out
    after = listing(folder / "params")
    assert {name: after[name] for name in before} == before
    assert np.array_equal(logits(folder), logits(built[0]))


def test_use_cache_0_converts_again(dist, tiny, rwkv):
    folder = dist / NAME
    shard = shard_identity(folder)
    code, out, _ = rwkv(*build_command(tiny, dist, "--use-cache", "0", "--convert-weights-only"))
    assert code == 0 and "Reuse" not in out
    assert shard_identity(folder) != shard
    assert Artifact.open(folder).libraries() == {}


def test_damaged_parameters_are_converted_again(dist, tiny, rwkv):
    shard = dist / NAME / "params" / "params_shard_0.bin"
    good = shard.read_bytes()
    shard.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    code, out, _ = rwkv(*build_command(tiny, dist, "--convert-weights-only"))
    assert code == 0 and "Reuse" not in out
    assert shard.read_bytes() == good


def test_another_checkpoint_of_the_same_name_is_refused(dist, rwkv, tmp_path):
    other = write_checkpoint(tmp_path / "elsewhere" / "tiny.safetensors", seed=1)
    before = listing(dist)
    for only in ("--convert-weights-only", "--build-model-only"):
        code, _, err = rwkv(*build_command(other, dist, only))
        assert code == 2 and ("--artifact-name NAME" in err or "holds another model" in err)
    for part in ("convert-weight", "gen-config"):
        code, _, err = rwkv(part, "--model", other, "-o", dist / NAME)
        assert code == 2 and f"not from {other} (" in err and "another folder with -o, or --overwrite" in err
    assert listing(dist).keys() - {f"{NAME}/params/.verified.json"} == before.keys() - {f"{NAME}/params/.verified.json"}
    assert Artifact.open(dist / NAME).record.source != str(other)

    code, _, _ = rwkv(*build_command(other, dist, "--convert-weights-only", "--artifact-name", "run2"))
    assert code == 0 and Artifact.open(dist / "run2").record.source == str(other)
    assert chat_config(dist / "run2")["model_lib"] == "run2"
    code, _, err = rwkv(*build_command(other, dist, "--artifact-name", "../run2"))
    assert code == 2 and "--artifact-name must be the name of a file" in err


def test_another_checkpoint_replaces_the_artifact_when_asked_to(dist, rwkv, tmp_path):
    other = write_checkpoint(tmp_path / "elsewhere" / "tiny.safetensors", seed=1)
    before = (dist / NAME / "params" / "params_shard_0.bin").read_bytes()
    code, out, _ = rwkv(*build_command(other, dist, "--convert-weights-only", "--overwrite"))
    assert code == 0 and "Reuse" not in out
    artifact = Artifact.open(dist / NAME)
    assert artifact.record.source == str(other)
    assert artifact.libraries() == {} and not (dist / NAME / "debug").exists()
    assert (dist / NAME / "params" / "params_shard_0.bin").read_bytes() != before


# Flags


def test_reuse_lib(built, rwkv, tmp_path):
    other = write_checkpoint(tmp_path / "checkpoints" / "other.safetensors", seed=1)
    library = built[0] / f"{NAME}-llvm.so"
    more = ("--reuse-lib", str(library), "--max-seq-len", "77")
    code, out, _ = rwkv(*build_command(other, tmp_path / "dist", *more))
    folder = tmp_path / "dist" / "other-q4f16_1"
    assert code == 0 and f"Reuse existing prebuilt lib {library}..." in out and "Target" not in out
    assert (folder / "other-q4f16_1-llvm.so").read_bytes() == library.read_bytes()
    assert not np.allclose(logits(folder), logits(built[0]))
    assert Engine(folder).config.context_length == 77


@pytest.mark.parametrize(
    ("shape", "quantization", "change", "message"),
    [
        ({"layers": 2}, "q4f16_1", {}, "another model shape or scheme"),
        ({}, "q4f16_2", {}, "another model shape or scheme"),
        ({}, "q4f16_1", {"versions": {"rwkv_mlc": "0.0.1"}}, "by other versions of rwkv_mlc or TVM"),
        ({}, "q4f16_1", {"sha256": "0" * 64}, "checksum differs"),
        ({}, "q4f16_1", {"file": "renamed.so"}, "not in its artifact's build record"),
    ],
)
def test_reuse_lib_refuses_what_does_not_fit(dist, rwkv, tmp_path, shape, quantization, change, message):
    other = write_checkpoint(tmp_path / "checkpoints" / "other.safetensors", **shape)
    edit_record(dist / NAME, **change)
    before = listing(dist)
    library = str(dist / NAME / f"{NAME}-llvm.so")
    code, _, err = rwkv(*build_command(other, dist, "--quantization", quantization, "--reuse-lib", library))
    assert code == 2 and message in err
    assert listing(dist).keys() - {f"{NAME}/params/.verified.json"} == before.keys() - {f"{NAME}/params/.verified.json"}


def test_reuse_lib_needs_an_artifact(tiny, rwkv, tmp_path):
    stray = tmp_path / "stray.so"
    stray.write_bytes(b"code")
    code, out, err = rwkv(*build_command(tiny, tmp_path / "dist", "--reuse-lib", str(stray)))
    assert code == 2 and "lies in no artifact" in err
    assert "Start" not in out and not (tmp_path / "dist").exists()


def test_system_lib(dist, rwkv, tmp_path):
    folder = dist / NAME
    assert rwkv("compile", folder, "--system-lib")[0] == 0
    archive = folder / f"{NAME}-llvm.tar"
    with tarfile.open(archive) as tar:
        objects = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}
    assert objects and all(name.endswith(".o") and data.startswith(b"\x7fELF") for name, data in objects.items())
    assert any(b"tiny_q4f16_1___tvm_ffi__library_bin" in data for data in objects.values())
    assert not (folder / f"{NAME}-llvm.so").exists()
    before = listing(folder)
    with pytest.raises(UserError, match="to be linked into a program"):
        Engine(folder)
    assert listing(folder).keys() == before.keys()


def test_flags_of_the_source(tiny, rwkv, tmp_path):
    vocabulary = tmp_path / "vocabulary.txt"
    write_vocabulary(vocabulary, 90)
    flags = ["--head-size-divisor", "4", "--max-seq-len", "1234", "--template", "plain", "--tokenizer", str(vocabulary)]
    code, _, _ = rwkv(*build_command(tiny, tmp_path, "--quantization", "q0f16", "--convert-weights-only", *flags))
    folder = tmp_path / "tiny-q0f16"
    assert code == 0
    config = chat_config(folder)
    assert config["model_config"]["head_size_divisor"] == Artifact.open(folder).record.head_size_divisor == 4
    assert config["model_config"]["context_length"] == config["max_gen_len"] == 1234
    assert config["conv_template"]["name"] == "plain" and config["active_vocab_size"] == 91
    assert (folder / "params" / "rwkv_vocab.txt").read_bytes() == vocabulary.read_bytes()


def test_a_model_by_its_name_below_the_artifacts(tiny, rwkv, tmp_path):
    models = tmp_path / "models" / "tiny"
    shutil.copytree(tiny.parent, models)
    (models / "tiny.safetensors").rename(models / "model.safetensors")
    (models / "config.json").write_text('{"model_type": "rwkv5"}', encoding="utf-8")
    code, out, _ = rwkv("build", "--model", "tiny", "--artifact-path", tmp_path, "--convert-weights-only")
    assert code == 0 and f'Using path "{models}" for model "tiny"' in out
    assert Artifact.open(tmp_path / NAME).parameters()


def test_hf_path(tmp_path):
    write_vocabulary(tmp_path / "vocab.txt")
    files = {
        "model.safetensors": save(synthetic_checkpoint("5.2", **SHAPE)),
        "config.json": b'{"model_type": "rwkv5"}',
        "rwkv_vocab_tiny.txt": (tmp_path / "vocab.txt").read_bytes(),
    }
    with serve_hub({"me/tiny": files}) as (endpoint, _):
        environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": endpoint}
        command = [sys.executable, "build.py", "--hf-path", "me/tiny", "--artifact-path", str(tmp_path / "dist")]
        command += ["--convert-weights-only"]
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert f"Weights exist at {tmp_path / 'home'}" in result.stdout
    assert 'Using path "me/tiny" for model "tiny"' in result.stdout
    assert Artifact.open(tmp_path / "dist" / NAME).record.source == "me/tiny"


def test_random_weights_of_a_preset(rwkv, tmp_path, monkeypatch):
    preset = json.loads((configs.ROOT / "models" / "rwkv-5-world-0.1b.json").read_text(encoding="utf-8"))
    preset |= {"vocab_size": 97, "hidden_size": 64, "num_hidden_layers": 1, "intermediate_size": 224}
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "small.json").write_text(json.dumps(preset), encoding="utf-8")
    shutil.copytree(configs.ROOT / "templates", tmp_path / "templates")
    write_vocabulary(tmp_path / "vocabulary.txt")
    monkeypatch.setattr(configs, "ROOT", tmp_path)
    common = ["--model", "small", "--tokenizer", tmp_path / "vocabulary.txt", "--artifact-path", tmp_path / "dist"]

    code, _, err = rwkv("build", *common, "--convert-weights-only")
    assert code == 2 and "add --random-weights" in err
    shard = tmp_path / "dist" / "small-q4f16_1" / "params" / "params_shard_0.bin"
    contents = []
    for seed, reused in ((0, False), (0, True), (1, False)):
        code, out, _ = rwkv("build", *common, "--convert-weights-only", "--random-weights", "--seed", seed)
        assert code == 0 and ("Reuse parameters" in out) == reused
        contents.append(shard.read_bytes())
    assert contents[0] == contents[1] != contents[2]


def test_flags_of_the_founding_build_script_are_all_there(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["build", "--help"])
    assert exit_.value.code == 0
    flags = "model hf-path target quantization artifact-path use-cache reuse-lib convert-weights-only build-model-only"
    helped = capsys.readouterr().out
    for flag in [*flags.split(), "debug-dump", "system-lib", "max-seq-len", "random-weights", "seed"]:
        assert f"--{flag} " in helped or f"--{flag}]" in helped or f"--{flag}," in helped, flag


# Refusals: one sentence, exit code 2, nothing written


class Evil:
    def __reduce__(self):
        return print, ("this should not run",)


def bad_checkpoint(kind: str, folder: Path) -> tuple[Path, str]:
    path = folder / f"{kind}.pth"
    tensors = synthetic_checkpoint("5.2", **SHAPE)
    if kind == "truncated":
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps({}))
        path.write_bytes(buffer.getvalue()[:-30])
        return path, "is truncated or damaged"
    if kind == "random bytes":
        path.write_bytes(np.random.default_rng(0).bytes(5000))
        return path, "is no checkpoint"
    if kind == "text":
        path.write_text("Once upon a time there was a file.\n" * 100, encoding="utf-8")
        return path, "is no checkpoint"
    if kind == "code":
        write_pth(path, pickle.dumps(Evil()))
        return path, "builtins.print, which is refused"
    if kind == "missing":
        return path, "no file or folder"
    if kind == "tensor":
        del tensors["blocks.0.att.key.weight"]
        return write_checkpoint(path.with_suffix(".safetensors"), tensors), "missing blocks.0.att.key.weight"
    value = {"NaN": np.nan, "Inf": -np.inf}[kind]
    tensors["blocks.0.ffn.key.weight"][3, 7] = value
    return write_checkpoint(path.with_suffix(".safetensors"), tensors), "blocks.0.ffn.key.weight holds NaN or infinite"


@pytest.mark.parametrize("kind", ["truncated", "random bytes", "text", "code", "missing", "tensor", "NaN", "Inf"])
def test_bad_checkpoints(kind, rwkv, tmp_path):
    (tmp_path / "input").mkdir()
    (tmp_path / "dist").mkdir()
    path, message = bad_checkpoint(kind, tmp_path / "input")
    code, out, err = rwkv(*build_command(path, tmp_path / "dist", "--convert-weights-only"))
    assert code == 2 and message in err
    assert err.count("\n") == 1 and "Traceback" not in err and "this should not run" not in out
    assert kind in ("NaN", "Inf") or out == ""
    assert list((tmp_path / "dist").iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--quantization", "q4f16_3"], "did you mean q4f16_"),
        (["--quantization", "int4"], "Valid are q0f32, q0f16, q3f16_1, q4f16_0"),
        (["--target", "lvm"], "did you mean llvm? Valid are auto, llvm, cuda"),
        (["--target", "llvm", "--mcpu", "skylake-avx521"], "did you mean skylake"),
        (["--target", '{"kind": "llvm",'], "is not valid JSON"),
        (["--template", "wrld"], "rwkv_world"),
        (["--head-size-divisor", "0"], "--head-size-divisor must be at least 1"),
        (["--max-seq-len", "0"], "--max-seq-len must be at least 1"),
        (["--hf-path", "me/other"], "name different models"),
        (["--tokenizer", "/nowhere.txt"], "/nowhere.txt"),
        (["--random-weights"], "valid names are rwkv-4-pile-14b"),
        (["--build-model-only"], "is no artifact"),
    ],
)
def test_bad_flags(flags, message, tiny, rwkv, tmp_path):
    code, _, err = rwkv(*build_command(tiny, tmp_path, *flags))
    assert code == 2 and message in err
    assert err.count("\n") == 1 and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_must_be_named(rwkv, tmp_path):
    build = ["build", "--artifact-path", tmp_path]
    for command in (["convert-weight", "-o", tmp_path / "x"], [*build, "--random-weights"], [*build, "--model", ""]):
        code, _, err = rwkv(*command)
        assert code == 2 and "Give a checkpoint with --model" in err


@pytest.mark.parametrize("named", [[], ["--model", "auto"]])
def test_a_build_without_a_model_takes_the_only_one(rwkv, tmp_path, monkeypatch, named):
    """That of ``dist/models``, of several none, and else the demo model."""
    taken: list[tuple[str, str | None]] = []
    monkeypatch.setattr(building, "build", lambda model, *rest, **_: taken.append((model, rest[-1].template)))
    monkeypatch.chdir(tmp_path)
    command = ["build", "--target", "metal", "--quantization", "q4f16_1", *named]
    demo = str(DEMOS / "rwkv-7-village")
    assert rwkv(*command) == (
        0,
        f"No --model is given and dist/models holds no checkpoint, so that this builds the demo model {demo}\n",
        "",
    )
    models = tmp_path / "dist" / "models"
    for name in ("folder", "notes", ".hidden.pth"):
        (models / name).mkdir(parents=True)
    (models / "notes" / "README.md").touch()
    (models / "RWKV-5.txt").touch()
    (models / "folder" / "pytorch_model.bin").touch()
    assert rwkv(*command) == (0, "", "")
    assert rwkv(*command, "--template", "rwkv_g1") == (0, "", "")
    (models / "other.pth").touch()
    code, _, err = rwkv(*command)
    assert code == 2 and "dist/models holds several checkpoints: folder, other.pth; name one with --model." in err
    only = str(Path("dist", "models", "folder"))
    assert taken == [(demo, "rwkv_world"), (only, None), (only, "rwkv_g1")]


def test_build_py_calls_itself_so(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["build", "--help"], "build.py")
    assert exit.value.code == 0 and capsys.readouterr().out.startswith("usage: build.py [-h] [--model MODEL]")
    with pytest.raises(SystemExit):
        main(["build", "--whatever"], "build.py")
    assert "build.py: error: there is no --whatever; build.py --help lists" in capsys.readouterr().err


def test_a_model_of_another_shape_is_not_compiled_for_an_artifact(dist, rwkv, tmp_path):
    other = write_checkpoint(tmp_path / "checkpoints" / "tiny.safetensors", layers=2)
    code, _, err = rwkv(*build_command(other, dist, "--build-model-only"))
    assert code == 2 and "holds another model than tiny" in err


def test_vocabulary_missing_or_of_another_model(tiny, rwkv, tmp_path):
    alone = tmp_path / "alone" / "tiny.safetensors"
    alone.parent.mkdir()
    shutil.copy(tiny, alone)
    (tmp_path / "dist").mkdir()
    command = build_command(alone, tmp_path / "dist", "--convert-weights-only")
    code, _, err = rwkv(*command)
    assert code == 2 and "put its *vocab*.txt or tokenizer.json beside the checkpoint" in err
    write_vocabulary(alone.with_name("rwkv_vocab.txt"), 200)
    code, _, err = rwkv(*command)
    assert code == 2 and "does not fit a model of 97 tokens" in err
    assert list((tmp_path / "dist").iterdir()) == []


def test_an_output_that_is_no_place_for_an_artifact(tiny, rwkv, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine", encoding="utf-8")
    (tmp_path / NAME).write_text("mine", encoding="utf-8")
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("mine", encoding="utf-8")
    before = listing(tmp_path)
    for command, message in (
        (build_command(tiny, file, "--convert-weights-only"), f"Cannot write into {file}"),
        (build_command(tiny, file / "below", "--convert-weights-only"), "Cannot write into"),
        (build_command(tiny, tmp_path, "--convert-weights-only"), "is a file"),
        (build_command(tiny, Path("/proc/artifacts"), "--convert-weights-only"), "Cannot write into /proc/artifacts"),
        (["convert-weight", "--model", tiny, "-o", precious], "holds other files and no artifact"),
        (["gen-config", "--model", tiny, "-o", precious], "holds other files and no artifact"),
        (["compile", precious], "is no artifact"),
    ):
        code, _, err = rwkv(*command)
        assert code == 2 and message in err, (command, err)
        assert err.count("\n") == 1
    assert listing(tmp_path) == before


def test_linking_needs_a_compiler(tiny, rwkv, tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for name in ("CXX", "CC"):
        monkeypatch.delenv(name, raising=False)
    code, out, err = rwkv(*build_command(tiny, tmp_path / "dist"))
    assert code == 2 and "install g++ or clang" in err and "quantizing" not in out
    monkeypatch.setenv("CXX", "g+++")
    code, _, err = rwkv(*build_command(tiny, tmp_path / "dist"))
    assert code == 2 and "no C++ compiler g+++" in err
    assert not (tmp_path / "dist").exists()


def test_a_linker_that_fails(dist, rwkv, tmp_path, monkeypatch, code_at_hand):
    compiler = tmp_path / "broken-c++"
    compiler.write_text("#!/bin/sh\necho cannot find -lm\nexit 1\n", encoding="utf-8")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    before = listing(dist)
    code, _, err = rwkv("compile", dist / NAME)
    assert code == 2 and "failed (cannot find -lm)" in err
    after = listing(dist)
    assert {name: after[name] for name in before} == before


# A build that dies


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize(
    ("module", "name"), [(Path, "write_bytes"), (record_module, "write_json"), (tokenizer_module, "_copy")]
)
def test_full_disk_while_converting(module, name, existing, built, dist, tiny, rwkv, monkeypatch):
    if not existing:
        shutil.rmtree(dist / NAME)
    before = listing(dist)
    with monkeypatch.context() as patched:
        patched.setattr(module, name, full_disk)
        code, _, err = rwkv(*build_command(tiny, dist, "--use-cache", "0", "--convert-weights-only"))
    assert code == 2 and "is full; free some space and repeat." in err
    assert listing(dist) == before


@pytest.mark.parametrize("step", ["room", "link", "copy"])
def test_full_disk_while_compiling(step, dist, rwkv, tmp_path, monkeypatch, code_at_hand):
    before = listing(dist)
    with monkeypatch.context() as patched:
        if step == "room":
            patched.setattr(link_module, "ROOM", 1 << 62)
        elif step == "link":
            compiler = tmp_path / "c++"
            compiler.write_text(
                "#!/bin/sh\necho final link failed: No space left on device\nexit 1\n", encoding="utf-8"
            )
            compiler.chmod(0o755)
            patched.setenv("CXX", str(compiler))
        else:
            patched.setattr(shutil, "copyfile", full_disk)
        code, _, err = rwkv("compile", dist / NAME)
    assert code == 2 and "is full; free some space and repeat." in err
    after = listing(dist)
    assert after.keys() - before.keys() <= {f"{NAME}/params/.verified.json"}
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("size", ["300k", "8m"], ids=["parameters", "library"])
def test_a_disk_that_is_really_full(size, rwkv, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        checkpoint = write_checkpoint(tmp_path / "tiny.safetensors", hidden_size=256)
        code, _, err = rwkv(*build_command(checkpoint, disk, "--quantization", "q0f32"))
        assert code == 2 and f"The disk that holds {disk / 'tiny-q0f32'} is full; free some space and repeat." in err
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("existing", [False, True])
def test_a_killed_build_leaves_the_old_artifact_or_none(existing, dist, tiny, rwkv):
    folder = dist / NAME
    if not existing:
        shutil.rmtree(folder)
    before = listing(folder)
    code = (
        "import sys, time\n"
        "from rwkv_mlc.artifact.shards import ShardWriter\n"
        "from rwkv_mlc.cli.main import main\n"
        "def finish(self, count):\n"
        "    self._flush()\n"
        "    print('half written', flush=True)\n"
        "    time.sleep(600)\n"
        "ShardWriter.finish = finish\n"
        "main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", code, *build_command(tiny, dist, "--use-cache", "0", "--convert-weights-only")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        while "half written" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    assert listing(folder) == before
    if existing:
        assert np.isfinite(logits(folder)).all()
    assert (dist / f".{NAME}.staged" / "params" / "params_shard_0.bin").exists()
    assert rwkv(*build_command(tiny, dist, "--use-cache", "0", "--convert-weights-only"))[0] == 0
    assert [path.name for path in dist.iterdir()] == [NAME]


def test_an_interrupted_build_leaves_nothing(tmp_path):
    command = [sys.executable, "-m", "rwkv_mlc", *build_command(DEMO, tmp_path / "dist")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while "Start compiling" not in process.stdout.readline():
            assert process.poll() is None
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in said
    assert list((tmp_path / "dist").iterdir()) == []


def test_a_lock_of_a_dead_build_does_not_stop_the_next(dist, tiny, rwkv):
    (dist / f".{NAME}.lock").touch()
    assert rwkv(*build_command(tiny, dist, "--use-cache", "0", "--convert-weights-only"))[0] == 0


# Libraries that cannot run here are refused before they are loaded


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"cpu_features": sorted({*REQUIRED_FEATURES} - (host_features() or {*REQUIRED_FEATURES}))},
            "which this CPU lacks",
        ),
        (
            {"target": {"mtriple": "riscv64-unknown-linux-gnu"}},
            f"is for riscv64 and this machine is {host_architecture()}",
        ),
        ({"versions": {"apache-tvm": "0.12.0"}}, "was built with apache-tvm 0.12.0"),
    ],
)
def test_libraries_for_other_machines(change, message, dist, rwkv):
    if change == {"cpu_features": []}:
        pytest.skip("this system does not tell its CPU's features")
    folder = dist / NAME
    library = folder / f"{NAME}-llvm.so"
    library.write_bytes(b"not a library: loading it would be noticed")
    edit_record(folder, sha256=record_module.digest(library, "sha256"), **change)
    with pytest.raises(UserError, match=message):
        Engine(folder)
    code, _, err = rwkv("generate", folder, "--prompt", "A")
    assert code == 2 and message in err and err.count("\n") == 1


def test_a_damaged_library_is_refused(dist):
    library = dist / NAME / f"{NAME}-llvm.so"
    library.write_bytes(library.read_bytes()[:-1])
    with pytest.raises(UserError, match="checksum differs"):
        Engine(dist / NAME)

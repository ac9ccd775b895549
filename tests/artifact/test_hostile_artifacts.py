"""Artifacts that were made to do harm: names that lead elsewhere, counts of what is not there, files that never end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rwkv_mlc.artifact import Artifact, BuildRecord, add_library
from rwkv_mlc.artifact.disk import beside, check_output, staging
from rwkv_mlc.building import staged
from rwkv_mlc.cli.main import main
from rwkv_mlc.engine.engine import Engine
from rwkv_mlc.engine.state_file import FORMAT, load_state
from rwkv_mlc.errors import UserError
from rwkv_mlc.weights import open_checkpoint
from support.limited import outcome
from support.paths import DEMO

INSPECT = (
    "from rwkv_mlc.artifact import Artifact; from rwkv_mlc.inspection import artifact_summary; "
    "artifact_summary(Artifact.open(sys.argv[1]))"
)
RECORD, CONFIG, INDEX = "build-record.json", "params/mlc-chat-config.json", "params/tensor-cache.json"


@pytest.fixture
def artifact(demo, tmp_path) -> Path:
    return Path(shutil.copytree(demo, tmp_path / demo.name))


def edit(file: Path, change: Callable[[Any], object]) -> None:
    data = json.loads(file.read_text(encoding="utf-8"))
    change(data)
    file.write_text(json.dumps(data), encoding="utf-8")


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped", "a/b", "..", "", "a\0b", "\x1b[31m", "x" * 5000])
def test_a_record_with_a_name_that_leads_elsewhere(artifact, name):
    edit(artifact / RECORD, lambda data: data.update(name=name))
    (artifact.parent / "built.so").write_bytes(b"code")
    with pytest.raises(UserError, match="gives name as .*, expected the name of a file in the same folder"):
        add_library(artifact, artifact.parent / "built.so", "llvm", {"kind": "llvm"}, [])


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "x\0y", "x" * 5000, "\\ud800"])
@pytest.mark.parametrize(
    "file, put",
    [
        (RECORD, lambda data, name: data["libraries"]["llvm"].update(file=name)),
        (CONFIG, lambda data, name: data.update(tokenizer_files=[name])),
        (INDEX, lambda data, name: data["records"][0].update(dataPath=name)),
    ],
    ids=["library", "tokenizer", "shard"],
)
def test_names_that_lead_elsewhere(artifact, file, put, name):
    edit(artifact / file, lambda data: put(data, name))
    text = (artifact / file).read_text(encoding="utf-8")
    (artifact / file).write_text(text.replace("\\\\ud800", "\\ud800"), encoding="utf-8")
    with pytest.raises(UserError, match="expected the name of a file in the same folder|is not JSON") as error:
        Artifact.open(artifact).library("llvm")
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    "file", [RECORD, CONFIG, INDEX, "params/rwkv_vocab.txt", "params/params_shard_0.bin", "library"]
)
def test_links_out_of_the_artifact(artifact, file):
    path = BuildRecord.read(artifact).libraries["llvm"].path if file == "library" else artifact / file
    path.rename(artifact.parent / "outside")
    path.symlink_to(artifact.parent / "outside")
    with pytest.raises(UserError, match="cannot be read .it is a link out of"):
        Artifact.open(artifact).library("llvm")


@pytest.mark.parametrize(
    "file", [RECORD, CONFIG, INDEX, "params/rwkv_vocab.txt", "params/params_shard_0.bin", "library"]
)
def test_pipes_in_an_artifact(artifact, file):
    path = BuildRecord.read(artifact).libraries["llvm"].path if file == "library" else artifact / file
    path.unlink()
    os.mkfifo(path)
    code = "from rwkv_mlc.artifact import Artifact; Artifact.open(sys.argv[1]).library('llvm')"
    found = outcome(code, artifact)
    assert found.startswith("UserError: ") and ("it is a pipe" in found or "is no artifact" in found)


@pytest.mark.parametrize(
    "file, change",
    [
        (CONFIG, lambda data: data["model_config"].update(num_hidden_layers=10**9)),
        (CONFIG, lambda data: data["model_config"].update(num_hidden_layers=65536)),
        (CONFIG, lambda data: data["model_config"].update(vocab_size=2**31 - 1, hidden_size=2**31 - 1)),
        (CONFIG, lambda data: data["model_config"].update(own=[[1]])),
        (CONFIG, lambda data: data.update(temperature=float("inf"))),
        (INDEX, lambda data: data["records"][0].update(nbytes=0, records=[])),
        (INDEX, lambda data: data["records"][0]["records"][0].update(shape=[2**31 - 1] * 200_000)),
        (INDEX, lambda data: data["records"][0]["records"].extend(data["records"][0]["records"] * 100)),
        (RECORD, lambda data: data["libraries"]["llvm"].update(target={"host": "llvm"})),
        (RECORD, lambda data: data["libraries"]["llvm"].update(target={"mtriple": ["x"]})),
        (RECORD, lambda data: data["libraries"]["llvm"].update(target={"mcpu": {"a": 1}})),
    ],
)
def test_counts_and_types_that_do_not_fit(artifact, file, change):
    edit(artifact / file, change)
    found = outcome(INSPECT, artifact)
    assert found.startswith("UserError: ") and len(found) < 5000


def test_a_vocabulary_beyond_the_model(artifact):
    with open(artifact / "params" / "rwkv_vocab.txt", "a", encoding="utf-8") as file:
        file.write("65000 'beyond' 6\n")
    with pytest.raises(UserError, match="has ids up to 65000, and the model 768 tokens"):
        Engine(artifact)


def test_a_changed_library_is_not_loaded(artifact):
    library = BuildRecord.read(artifact).libraries["llvm"].path
    library.write_bytes(library.read_bytes() + b"\0")
    with pytest.raises(UserError, match="is damaged: its checksum differs; run rwkv-mlc compile .* --target llvm"):
        Engine(artifact)


# What is written


@pytest.mark.parametrize("name", [".build-record.json.partial", ".secret.partial"])
def test_a_planted_link_is_not_written_through(artifact, tmp_path, name):
    (tmp_path / "secret").write_text("mine")
    (artifact / name).symlink_to(tmp_path / "secret")
    BuildRecord.read(artifact).write(artifact)
    with beside(artifact / "secret") as partial:
        partial.write_text("new")
    assert (tmp_path / "secret").read_text() == "mine" and BuildRecord.read(artifact).name == artifact.name


def test_what_an_output_links_to_is_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "file")
    with beside(tmp_path / "link") as partial:
        partial.write_text("new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "folder" / "file").read_text() == "new"


def test_a_device_is_written_and_not_replaced():
    check_output(Path("/dev/null"))
    with beside(Path("/dev/null")) as partial:
        partial.write_text("nowhere")
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("name", ["missing/x", "folder", "x" * 300, "x" * 5000, "", "file/x"])
def test_outputs_that_cannot_be_written(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        check_output(tmp_path / name)


def test_outputs_that_can_be_written_stay_as_they_are(tmp_path):
    (tmp_path / "file").write_text("old")
    check_output(tmp_path / "file")
    check_output(tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "old"


def test_a_folder_that_cannot_be_replaced_is_refused_before_the_work(tmp_path, monkeypatch):
    """Such as a mount point."""
    folder = tmp_path / "dist"
    folder.mkdir()
    (folder / "old").touch()
    rename = Path.rename

    def busy(self, target):
        if self == folder:
            raise OSError(16, "Device or resource busy")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", busy)
    with pytest.raises(UserError, match="dist cannot be replaced .Device or resource busy.; name a folder inside it"):
        with staging(folder):
            raise AssertionError("the work began")
    assert [path.name for path in folder.iterdir()] == ["old"]


def test_a_folder_that_is_a_mount_point(tmp_path, demo, monkeypatch, capsys):
    """Refused before the work as what is to be replaced, and used as what an artifact is built into or read from."""
    mount, folder = tmp_path / "mount", tmp_path / "mount" / f"{DEMO.name}-q0f32"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(mount)], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        build = ["--model", str(DEMO), "--quantization", "q0f32"]
        assert main(["build", *build, "--artifact-path", str(mount), "--convert-weights-only"]) == 0
        assert (folder / CONFIG).is_file()
        subprocess.run(["mount", "--bind", str(demo), str(folder)], check=True)
        try:
            command = [
                sys.executable,
                "-m",
                "rwkv_mlc",
                "generate",
                str(folder),
                "--prompt",
                "Tom",
                "--max-tokens",
                "2",
            ]
            assert subprocess.run(command, capture_output=True).returncode == 0
            monkeypatch.setattr(staged, "write_parameters", lambda *_: pytest.fail("the work began"))
            monkeypatch.setattr(staged, "compile_library", lambda *_: pytest.fail("the work began"))
            for command in (
                ["build", *build, "--artifact-path", str(mount), "--target", "llvm", "--overwrite", "--use-cache", "0"],
                ["convert-weight", *build, "-o", str(folder)],
                ["gen-config", *build, "-o", str(folder)],
                ["compile", str(folder), "--target", "llvm"],
            ):
                assert main(command) == 2
                assert f"{folder} cannot be replaced (Device or resource busy)" in capsys.readouterr().err
        finally:
            subprocess.run(["umount", str(folder)], check=True)
    finally:
        subprocess.run(["umount", str(mount)], check=True)
    assert (demo / CONFIG).is_file()


@pytest.mark.parametrize("path", ["x" * 300, "x/" * 2500, "x\0y"])
def test_paths_that_cannot_be(path):
    with pytest.raises(UserError, match="is no path"):
        Engine(path)
    with pytest.raises(UserError, match="is no path"):
        open_checkpoint(path)


def test_a_state_of_more_axes_than_numpy_has(artifact, tmp_path):
    header = {
        "__metadata__": {"format": FORMAT, "model": BuildRecord.read(artifact).source_sha256},
        "a": {"dtype": "F32", "shape": [1] * 100, "data_offsets": [0, 4]},
    }
    text = json.dumps(header).encode()
    (tmp_path / "a.state").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(UserError, match="does not have this model's shapes; it is damaged"):
        load_state(tmp_path / "a.state", Artifact.open(artifact), {"a": (1,)}, 8)

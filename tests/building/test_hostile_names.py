"""Checkpoints whose names no artifact can have."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rwkv_mlc.cli.main import main
from support.paths import DEMO

VOCABULARY = ("--tokenizer", str(DEMO / "rwkv_vocab_demo.txt"))


@pytest.mark.parametrize("name", ["a\x1b[31mb", "a\nb", "x" * 240, "b\udcff", "a\u202eb"])
def test_names_of_checkpoints(tmp_path, name, capsys):
    path = Path(tmp_path, name)
    shutil.copyfile(DEMO / "model.safetensors", path)
    out = tmp_path / "dist"
    assert main(["build", "--model", str(path), "--target", "llvm", "--artifact-path", str(out), *VOCABULARY]) == 2
    message = capsys.readouterr().err
    assert ("An artifact cannot be called" in message or "is not UTF-8" in message) and "\x1b" not in message
    assert message.count("\n") == 1 and not list(out.glob("*"))


@pytest.mark.parametrize("command", ["convert-weight", "gen-config"])
def test_names_of_folders(tmp_path, command, capsys):
    out = tmp_path / "a\x1b[31mb"
    assert main([command, "--model", str(DEMO), "-o", str(out)]) == 2
    assert "An artifact cannot be called" in capsys.readouterr().err and not out.exists()

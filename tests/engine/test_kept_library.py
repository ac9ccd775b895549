"""Libraries in the user's cache: built once, built again when they are not whole, and never another user's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rwkv_mlc.engine.kept_library import kept_library
from rwkv_mlc.errors import UserError


@pytest.fixture
def keep(tmp_path):
    """Keeps a library that is built of the given bytes; the folder, and what was built so far."""
    folder, built = tmp_path / "cache" / "vulkan-0123", []

    def call(content: bytes = b"code") -> Path:
        def compile_in(scratch: Path) -> Path:
            built.append(content)
            (scratch / "library.so").write_bytes(content)
            return scratch / "library.so"

        return kept_library(folder, "library.so", "The library", compile_in)

    return call, folder, built


def test_built_once_and_said_so(keep, capsys):
    call, folder, built = keep
    assert call() == folder / "library.so" and call(b"other").read_bytes() == b"code"
    assert built == [b"code"] and capsys.readouterr().err.count("The library is built") == 1
    assert folder.stat().st_mode & 0o77 == 0
    assert sorted(path.name for path in folder.iterdir()) == ["library.so", "library.so.sha256", "lock"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda library, checksum: library.write_bytes(b"co"),
        lambda library, checksum: library.write_bytes(b""),
        lambda library, checksum: library.unlink(),
        lambda library, checksum: checksum.unlink(),
        lambda library, checksum: checksum.write_bytes(b"\xff"),
    ],
)
def test_what_is_not_whole_is_built_again(keep, damage):
    call, folder, built = keep
    call()
    damage(folder / "library.so", folder / "library.so.sha256")
    assert call().read_bytes() == b"code" and built == [b"code"] * 2


def test_what_a_dead_build_left_is_swept(keep):
    call, folder, built = keep
    (folder / "tmpabc").mkdir(parents=True)
    folder.chmod(0o700)
    (folder / "tmpabc" / "a.o").touch()
    call()
    assert not (folder / "tmpabc").exists() and built == [b"code"]


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_folders_that_others_may_write(keep, mode):
    call, folder, built = keep
    call()
    folder.chmod(mode)
    with pytest.raises(UserError, match="belongs to another user, or others may write into it"):
        call()
    assert built == [b"code"]


def test_folders_of_others(keep, monkeypatch):
    call, folder, built = keep
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(UserError, match="belongs to another user"):
        call()
    assert built == [] and folder.exists()

"""Libraries that are none, not whole, or not ours: what looks at them does not load them, and what loads them looks first."""

from __future__ import annotations

import gzip
import io
import json
import re
import shutil
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest
from tvm.support import cc

from rwkv_mlc.artifact import BuildRecord
from rwkv_mlc.artifact.disk import digest
from rwkv_mlc.cli.main import main
from rwkv_mlc.engine import devices
from rwkv_mlc.engine.compatibility import read_metadata
from rwkv_mlc.engine.engine import Engine
from rwkv_mlc.errors import UserError
from support.limited import outcome

VERIFY = "from rwkv_mlc.verification import verify; from pathlib import Path; verify(Path(sys.argv[1]))"
BLOB = struct.pack("<6Q", 44, 2, 0, 0, 0, 4) + b"_lib"


@pytest.fixture
def artifact(demo, tmp_path) -> Path:
    return Path(shutil.copytree(demo, tmp_path / demo.name))


def library_of(artifact: Path) -> Path:
    return BuildRecord.read(artifact).libraries["llvm"].path


def described(content: bytes, artifact: Path) -> bytes:
    """The same library, which says of itself what the artifact's does, so that it is loaded."""
    text = read_metadata(library_of(artifact)).model_dump_json(by_alias=True).encode()
    return content + struct.pack("<Q", len(text)) + text


def replace(artifact: Path, content: bytes) -> None:
    """Put another file in the place of the library, with its hash in the record."""
    library_of(artifact).write_bytes(content)
    data = json.loads((artifact / "build-record.json").read_text(encoding="utf-8"))
    data["libraries"]["llvm"]["sha256"] = digest(library_of(artifact), "sha256")
    (artifact / "build-record.json").write_text(json.dumps(data), encoding="utf-8")


@pytest.fixture
def constructed(tmp_path) -> tuple[bytes, Path]:
    """A library with TVM's symbols that writes a file as soon as it is loaded; the file."""
    marker, source = tmp_path / "it-ran", tmp_path / "library.c"
    numbers = ",".join(map(str, BLOB))
    source.write_text(
        "#include <stdio.h>\n"
        f"const unsigned char __tvm_ffi__library_bin[] = {{{numbers}}};\n"
        f'__attribute__((constructor)) void run(void) {{ fclose(fopen("{marker}", "w")); }}\n'
    )
    built = tmp_path / "library.so"
    subprocess.run([cc.get_cc(), "-x", "c", "-shared", "-fPIC", source, "-o", built], check=True)
    return built.read_bytes(), marker


@pytest.mark.parametrize("command", [["verify"], ["inspect"]])
def test_looking_at_a_library_does_not_run_it(artifact, constructed, command, capsys):
    replace(artifact, constructed[0])
    assert main([*command, str(artifact)]) == 0
    assert not constructed[1].exists()
    if command == ["verify"]:
        assert "--run runs it" in " ".join(capsys.readouterr().out.split())


def test_a_library_is_run_when_asked_for_and_in_another_process(artifact, constructed, capsys):
    replace(artifact, described(constructed[0], artifact))
    assert main(["verify", str(artifact), "--run", "--json"]) == 1
    (report,) = json.loads(capsys.readouterr().out)
    (check,) = (check for check in report["checks"] if check["check"] == "run")
    assert check["status"] == "failed" and "is no library that rwkv-mlc wrote" in check["detail"]
    assert constructed[1].exists()
    maps = Path("/proc/self/maps").read_text()
    assert str(library_of(artifact)) not in maps


def test_a_library_that_crashes_is_a_line(artifact, tmp_path, capsys):
    source, built = tmp_path / "crash.c", tmp_path / "crash.so"
    numbers = ",".join(map(str, BLOB))
    source.write_text(
        f"const unsigned char __tvm_ffi__library_bin[] = {{{numbers}}};\n"
        "__attribute__((constructor)) void run(void) { *(volatile int *)0 = 1; }\n"
    )
    subprocess.run([cc.get_cc(), "-x", "c", "-shared", "-fPIC", source, "-o", built], check=True)
    replace(artifact, described(built.read_bytes(), artifact))
    assert main(["verify", str(artifact), "--run"]) == 1
    assert "ended by signal 11" in " ".join(capsys.readouterr().out.split())


def test_libraries_with_another_hash_are_not_loaded(artifact, constructed):
    library_of(artifact).write_bytes(constructed[0])
    with pytest.raises(UserError, match="its checksum differs; run rwkv-mlc compile"):
        Engine(artifact)
    assert not constructed[1].exists()


def changed(content: bytes, at: int, value: bytes) -> bytes:
    return content[:at] + value + content[at + len(value) :]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda elf: b"no library at all", "is no shared library"),
        (lambda elf: b"", "is no shared library"),
        (lambda elf: elf[:64], "ends too early"),
        (lambda elf: elf[:4096], "ends too early"),
        (lambda elf: elf[: len(elf) // 2], "ends too early"),
        (lambda elf: changed(elf, 18, struct.pack("<H", 40)), "is no shared library for"),
        (lambda elf: changed(elf, 4, b"\x01"), "is no shared library for"),
        (
            lambda elf: elf.replace(b"__tvm_ffi__library_bin", b"__tvm_ffi__library_bun"),
            "no library that rwkv-mlc wrote",
        ),
        (lambda elf: changed(elf, 32, struct.pack("<Q", 1 << 60)), "ends too early"),
    ],
)
def test_what_is_no_library_of_ours_is_not_loaded(artifact, change, message):
    replace(artifact, change(library_of(artifact).read_bytes()))
    found = outcome("from rwkv_mlc.engine.engine import Engine; Engine(sys.argv[1], 'cpu')", artifact)
    assert found.startswith("UserError: ") and message in found


def test_a_library_without_a_machine(artifact, constructed):
    says = described(constructed[0], artifact)
    replace(artifact, constructed[0])
    with pytest.raises(UserError, match="does not describe itself: it is no library that rwkv-mlc wrote"):
        Engine(artifact, "cpu")
    assert not constructed[1].exists()
    replace(artifact, says)
    with pytest.raises(UserError, match="is no library that rwkv-mlc wrote"):
        Engine(artifact, "cpu")


def test_a_library_for_another_device(artifact, capsys):
    """With the hash that the record gives."""
    content = library_of(artifact).read_bytes()
    assert content.count(b'"target":"llvm"') == 1
    replace(artifact, content.replace(b'"target":"llvm"', b'"target":"cuda"'))
    code = (
        "from rwkv_mlc.engine.engine import Engine\n"
        "    try: Engine(sys.argv[1], 'cpu')\n"
        "    finally: assert sys.argv[2] not in open('/proc/self/maps').read()"
    )
    found = outcome(code, artifact, library_of(artifact))
    assert found.startswith("UserError: ") and "recorded as the library for llvm and was compiled for 'cuda'" in found
    assert main(["inspect", str(artifact), "--json"]) == 0
    (library,) = json.loads(capsys.readouterr().out)["libraries"]
    assert not library["runs_here"] and "was compiled for 'cuda'" in library["problem"]


def test_a_device_that_is_not_there(artifact, capsys, monkeypatch):
    content = library_of(artifact).read_bytes()
    replace(artifact, content.replace(b'"target":"llvm"', b'"target":"cuda"'))
    record = artifact / "build-record.json"
    data = json.loads(record.read_text(encoding="utf-8"))
    data["libraries"] = {"cuda": data["libraries"]["llvm"]}
    record.write_text(json.dumps(data), encoding="utf-8")
    monkeypatch.setattr(devices, "CUDA_DRIVER", "libnvidia-that-nobody-has.so")
    assert main(["inspect", str(artifact), "--json"]) == 0
    (library,) = json.loads(capsys.readouterr().out)["libraries"]
    absent = (
        "The device cuda needs NVIDIA's driver|This machine has no device cuda"  # the runtime may be there without one
    )
    assert not library["runs_here"] and re.match(absent, library["problem"])


def test_chat_in_the_folder_itself(artifact, monkeypatch):
    """dlopen looks for a name without a slash elsewhere."""
    monkeypatch.chdir(artifact)
    engine = Engine(".", "cpu")
    assert engine.name == artifact.name and len(engine.generate("Tom", max_tokens=2, temperature=0).tokens) == 2


def member(name: str, size: int, content: bytes) -> bytes:
    """An archive whose one member says to have ``size`` bytes."""
    info = tarfile.TarInfo(name)
    info.size = size
    padding = -len(content) % 512
    return info.tobuf() + content + bytes(padding) + bytes(1024)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not an archive" * 100,
        member("a.o", 1 << 40, b"few"),
        member("a.o", 100, b""),
        gzip.compress(member("a.o", 1 << 20, bytes(1 << 20))),
        gzip.compress(member("a.o", 1 << 20, bytes(1 << 20)))[:-20],
        gzip.compress(bytes(1 << 29)),
        member("a.o", 64, b"\x7fELF" + bytes(60)),
    ],
)
def test_archives_of_objects_that_are_damaged(tmp_path, content):
    (tmp_path / "library.tar").write_bytes(content)
    found = outcome(VERIFY, tmp_path / "library.tar")
    assert found.startswith("UserError: ") and len(found) < 600


def test_damaged_anywhere(demo, tmp_path):
    """A changed byte gives another account, a failed check or a sentence."""
    code = (
        "import random; from pathlib import Path; from rwkv_mlc.verification import verify\n"
        "    data, path, generator = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]), random.Random(0)\n"
        "    for _ in range(60):\n"
        "        changed = bytearray(data)\n"
        "        for _ in range(generator.randint(1, 4)):\n"
        "            where = generator.choice([64, 4096, len(data)])\n"
        "            changed[generator.randrange(where)] = generator.randrange(256)\n"
        "        path.write_bytes(changed[: generator.choice([len(data), generator.randrange(len(data))])])\n"
        "        try: verify(path)\n"
        "        except UserError: pass"
    )
    assert outcome(code, library_of(demo), tmp_path / "x.so") == "no error"
    objects = io.BytesIO()
    with tarfile.open(fileobj=objects, mode="w") as archive:
        archive.add(library_of(demo), "lib0.o")
    (tmp_path / "whole.tar").write_bytes(objects.getvalue())
    assert outcome(code, tmp_path / "whole.tar", tmp_path / "x.tar") == "no error"


def test_metadata_is_read_without_loading(demo):
    code = (
        "from pathlib import Path; from rwkv_mlc.engine.compatibility import read_metadata\n"
        "    assert read_metadata(Path(sys.argv[1])).target == 'llvm'\n"
        "    assert sys.argv[1] not in Path('/proc/self/maps').read_text()"
    )
    assert outcome(code, library_of(demo)) == "no error"

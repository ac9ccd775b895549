"""What becomes of a command when its arguments, its streams, its disk or its memory are not what it hopes for: one
sentence, before any work is lost."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rwkv_mlc.cli import chat, inspect
from rwkv_mlc.cli.faults import TRACEBACKS
from rwkv_mlc.cli.main import main
from rwkv_mlc.engine.engine import Engine
from rwkv_mlc.escaping import escaped, listed, shortened
from support.paths import DEMO, ROOT
from support.synthetic import synthetic_checkpoint

COMMAND = [sys.executable, "-m", "rwkv_mlc"]
BARE = {name: value for name, value in os.environ.items() if name != TRACEBACKS}
LONG = "x/" * 2500


def shell(command: str, **options) -> subprocess.CompletedProcess:
    """A line of sh, in which ``rwkv-mlc`` is this one."""
    line = command.replace("rwkv-mlc", " ".join(COMMAND))
    return subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=240, env=BARE, **options)


def assert_sentence(result: subprocess.CompletedProcess, message: str) -> None:
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert message in result.stderr and result.stderr.startswith(("error: ", "usage: "))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["bench", "D", "--batch", "100000000000"], "expected an integer of at least 1 and"),
        (["bench", "D", "--threads", "10000"], "at least 1 and at most 256, found '10000'"),
        (["bench", "D", "--busy", "1000000"], "at least 0 and at most 256, found '1000000'"),
        (["bench", "D", "--decode", "1000000000"], "at least 1 and at most 1048576"),
        (["bench", "D", "--prefill", "8,1000000000"], "expected lengths with commas between them"),
        (["compare", "A", "B", "--rtol", "nan"], "expected a number above 0, found 'nan'"),
        (["compare", "A", "B", "--rtol", "inf"], "expected a number above 0, found 'inf'"),
        (["compare", "A", "B", "--rtol", "-1"], "expected a number above 0, found '-1'"),
        (["inspect", "D", "--head-size-divisor", "-1"], "expected an integer of at least 1 and"),
        (["dump", "D", "--decode", "-3"], "expected an integer of at least 0 and"),
        (["logits", "D", "--tokens", "9" * 5000, "--out", "x"], "expected token ids with commas between them"),
        (["build", "--model", "M", "--seed", "-1"], "expected an integer of at least 0 and"),
        (["chat", LONG], "File name too long"),
        (["verify", "y" * 300], "File name too long"),
        (["inspect", LONG], "File name too long"),
        (["build", "--model", LONG], "File name too long"),
        (["generate", "D", "--prompt-file", LONG], "File name too long"),
        (["generate", "D", "--state", LONG], "File name too long"),
        (["dump", LONG], "File name too long"),
        (["debug", "D", "--against", LONG], "File name too long"),
        (["compare", "A", LONG], "File name too long"),
        (["verify", ""], "it is empty; this folder is ."),
        (["build", "--artifact-path", ""], "it is empty; this folder is ."),
    ],
)
def test_arguments_that_no_command_could_use(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("device", ["cpu:99999999999999999999", "cpu:-1", "cpu:", "cpu:\u0661", "\x1b[31m", "z" * 5000])
def test_devices_that_cannot_be(demo, device, capsys):
    assert main(["generate", str(demo), "--prompt", "x", "--device", device]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: Unknown device ") and "\x1b" not in message and len(message) < 400


@pytest.mark.parametrize(
    "target",
    [
        "vulkan -max_num_threads=0",
        "vulkan -max_num_threads=99999999999999999999",
        "vulkan -thread_warp_size=0",
        "cuda -max_threads_per_block=0",
        "opencl -max_shared_memory_per_block=0",
        "llvm -opt-level=99999999999999999999",
        '{"kind": ' + "[" * 50_000,
        '{"kind": "llvm", "mcpu": ' + "[" * 50_000 + "]" * 50_000 + "}",
        '{"kind": "llvm", "num-cores": ' + "9" * 5000 + "}",
        '{"kind": {"a": 1}}',
        '{"kind": "llvm", "mtriple": "aarch64-linux-gnu\\udc80", "mcpu": "generic"}',
        '{"kind": "llvm", "mcpu": [' + "1, " * 20_000 + "1]}",
    ],
)
def test_targets_that_cannot_be(demo, target, capsys):
    assert main(["compile", str(demo), "--target", target]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and len(message) < 7000


def test_a_batch_that_memory_does_not_hold(demo, capsys):
    assert main(["bench", str(demo), "--batch", "100000000", "--decode", "1", "--prefill", "1"]) == 2
    assert "The states of 100000000 sequences take" in capsys.readouterr().err


# What is to be written is looked at before the work


@pytest.mark.parametrize(
    "arguments",
    [
        ["bench", "DIST", "--json", "OUT"],
        ["logits", "DIST", "--tokens", "1", "--out", "OUT"],
        ["generate", "DIST", "--prompt", "x", "--save-state", "OUT"],
        ["compare", "A", "B", "--html", "OUT"],
        ["debug", "DIST", "--against", "M", "--html", "OUT"],
    ],
)
@pytest.mark.parametrize("out", ["missing/file", "folder"])
def test_outputs_are_checked_first(demo, tmp_path, monkeypatch, arguments, out, capsys):
    def work(*_, **__):
        raise AssertionError("the work began")

    monkeypatch.setattr(Engine, "__init__", work)
    (tmp_path / "folder").mkdir()
    words = {"DIST": str(demo), "OUT": str(tmp_path / out)}
    assert main([words.get(word, word) for word in arguments]) == 2
    assert f"{out} cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["dump"], ["debug", "--against", "M"]])
def test_folders_of_dumps_are_checked_first(demo, tmp_path, command, monkeypatch, capsys):
    monkeypatch.setattr(Engine, "__init__", lambda *_: pytest.fail("the work began"))
    out = tmp_path / "out" / ("library" if command[0] == "debug" else "")
    out.mkdir(parents=True)
    (out / "mine").touch()
    assert main([command[0], str(demo), *command[1:], "--out", str(tmp_path / "out")]) == 2
    assert "is there and is no dump" in capsys.readouterr().err and (out / "mine").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is full")
@pytest.mark.parametrize("command", ["inspect DEMO", "inspect DEMO --json", "generate DEMO --prompt x"])
def test_a_full_output(demo, command):
    result = shell(f"rwkv-mlc {command.replace('DEMO', str(demo))} >/dev/full")
    assert_sentence(result, "The output cannot be written (No space left on device); free some space and repeat.")
    assert result.stderr.count("\n") == 1


def test_nobody_reads_any_more(demo):
    """``verify`` and ``compare`` say 1 for what they find."""
    for command in ("inspect", "verify"):
        result = shell(f"(rwkv-mlc {command} {demo}; echo $? >&2) | true")
        assert result.stderr == "141\n"


def test_closed_streams(demo):
    assert_sentence(shell(f"rwkv-mlc generate {demo} <&-"), "Standard input is closed; give the prompt with --prompt")
    assert shell(f"rwkv-mlc chat {demo} <&-").returncode == 0
    assert shell(f"rwkv-mlc generate {demo} --prompt x --max-tokens 1 >&-").returncode == 0
    assert shell(f"rwkv-mlc inspect {demo} >&- 2>&-").returncode == 0
    assert shell("rwkv-mlc inspect nowhere >&- 2>&-").returncode == 2


def _unmapped(_):
    raise ImportError("Original error was: liba.so: failed to map segment from shared object")


@pytest.mark.parametrize("run", [lambda _: bytearray(1 << 60), _unmapped], ids=["for an object", "for a library"])
def test_too_little_memory(monkeypatch, capsys, run):
    monkeypatch.setattr(inspect, "run", run)
    assert main(["inspect", "x"]) == 2
    assert capsys.readouterr().err == (
        "error: There is not enough memory for this; free some, or raise the limit (ulimit -v).\n"
    )


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_AS"), reason="a limit of memory")
@pytest.mark.parametrize(
    "command, gigabytes",
    [
        *(("inspect DEMO", limit) for limit in (0.08, 0.13, 0.145, 0.155, 0.5, 1.5)),
        *(("generate DEMO --prompt Tom --max-tokens 1", limit) for limit in (0.16, 0.25, 0.5)),
        *((f"build --model {DEMO} --target llvm --artifact-path OUT", limit) for limit in (0.2, 0.32)),
    ],
)
def test_a_limit_of_memory(demo, tmp_path, command, gigabytes):
    """No traceback, wherever the memory ends."""
    limit, line = int(gigabytes * (1 << 20)), command.replace("DEMO", str(demo)).replace("OUT", str(tmp_path))
    result = shell(f"ulimit -v {limit}; rwkv-mlc {line}")
    assert not command.startswith("build") or result.returncode == 2
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert result.returncode in (0, 2) and "Traceback" not in result.stderr and "OpenBLAS" not in result.stderr


# Faults of ours


def fault(_):
    raise KeyError("a bug\x1b[31m\nof ours")


def test_a_fault_is_a_sentence_with_a_log(monkeypatch, capsys):
    monkeypatch.delenv(TRACEBACKS)
    monkeypatch.setattr(inspect, "run", fault)
    assert main(["inspect", "x"]) == 70
    message = capsys.readouterr().err
    found = re.fullmatch(
        r"error: rwkv-mlc failed in a way that it did not expect \(KeyError: .*\); please report it with (\S+)\.\n",
        message,
    )
    assert found and "\x1b" not in message
    log = Path(found[1])
    assert "Traceback" in log.read_text() and "in fault" in log.read_text() and log.stat().st_mode & 0o77 == 0
    log.unlink()


def test_a_fault_is_a_traceback_for_developers(monkeypatch):
    monkeypatch.setattr(inspect, "run", fault)
    with pytest.raises(KeyError):
        main(["inspect", "x"])


class Panic(BaseException):
    """As Rust's, which is no Exception."""


@pytest.mark.parametrize("other", [RuntimeError, Panic])
def test_an_interrupt_that_comes_as_another_exception(monkeypatch, other):
    """As from TVM, in whose calls Ctrl-C becomes a RuntimeError."""

    def interrupted(_):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(30)
        except KeyboardInterrupt:
            raise other("KeyboardInterrupt") from None

    monkeypatch.delenv(TRACEBACKS)
    monkeypatch.setattr(inspect, "run", interrupted)
    assert main(["inspect", "x"]) == 130
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_panic_that_nobody_asked_for_is_shown(monkeypatch):
    def panic(_):
        raise Panic

    monkeypatch.setattr(inspect, "run", panic)
    with pytest.raises(Panic):
        main(["inspect", "x"])


def test_little_is_loaded_before_ctrl_c_is_understood():
    code = "import sys; before = {*sys.modules}; import rwkv_mlc.__main__; print(sorted({*sys.modules} - before))"
    result = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}
    )
    assert result.stdout == "['__future__', 'rwkv_mlc', 'rwkv_mlc.__main__']\n", result.stderr


def test_an_interrupt_waits_until_lief_is_loaded(tmp_path):
    """Which would otherwise abort the process: its module makes objects of Python from C++."""
    (tmp_path / "lief.py").write_text(
        "import os, pathlib, signal\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "loaded = sum(range(10**5))\n"
        "pathlib.Path(__file__).with_name('loaded').touch()\n"
        "class Binary: pass\n"
        "class logging:\n    disable = staticmethod(lambda: None)\n"
    )
    result = subprocess.run(
        [sys.executable, "-m", "rwkv_mlc", "verify", "lief.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )
    assert (result.returncode, result.stderr) == (130, "") and (tmp_path / "loaded").exists()


def test_a_folder_that_is_gone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    assert main(["inspect", "."]) == 2
    assert (
        capsys.readouterr().err
        == "error: The folder that this was started in is gone; change to another one and repeat.\n"
    )


# A chat goes on


def test_a_chat_survives_what_its_commands_do(demo, monkeypatch, capsys, tmp_path):
    monkeypatch.delenv(TRACEBACKS)
    monkeypatch.setattr(chat.Session, "_load", fault)
    lines = [
        "Hello",
        "/save ~nosuchuser/x",
        f"/save {LONG}",
        f"/save {tmp_path}",
        "/load x",
        f"/save {tmp_path}/s",
        "/exit",
    ]
    monkeypatch.setattr(chat, "_lines", lambda _: iter(lines))
    assert main(["chat", str(demo), "--temperature", "0"]) == 0
    captured = capsys.readouterr()
    errors = captured.err.splitlines()
    assert [line[:7] for line in errors] == ["error: "] * 4
    assert "~nosuchuser/x is no path" in errors[0] and "File name too long" in errors[1]
    assert "did not expect" in errors[3] and (tmp_path / "s").is_file()


# Text of files


def test_text_of_files_does_not_reach_the_terminal_raw(demo, tmp_path, capsys):
    evil = "\x1b]0;title\x07\x9b31m\u202e"
    folder = Path(shutil.copytree(demo, tmp_path / demo.name))
    record = json.loads((folder / "build-record.json").read_text(encoding="utf-8"))
    record |= {"source": f"model{evil}", "time": evil, "versions": {evil: evil}, "source_format": evil}
    (folder / "build-record.json").write_text(json.dumps(record), encoding="utf-8")
    config = json.loads((folder / "params/mlc-chat-config.json").read_text(encoding="utf-8"))
    config["conv_template"]["name"] = evil
    (folder / "params/mlc-chat-config.json").write_text(json.dumps(config), encoding="utf-8")
    for arguments in (["inspect", str(folder)], ["inspect", str(folder), "--json"]):
        assert main(arguments) == 0
        out = capsys.readouterr().out
        assert not set("\x1b\x07\x9b\u202e") & set(out) and "\\u001b]0;title\\u0007\\u009b31m\\u202e" in out
    assert json.loads(out)["source"]["source"] == f"model{evil}"
    weights = synthetic_checkpoint("5.2")
    save_file({**weights, f"x{evil}": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    assert main(["inspect", str(tmp_path / "model.safetensors")]) == 2
    assert "\x1b" not in (message := capsys.readouterr().err) and "unknown x\\u001b]0;title" in message


def test_names_that_look_like_markup(tmp_path, demo, capsys, monkeypatch):
    """Rich would take them for its own on a terminal."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    save_file(synthetic_checkpoint("5.2"), tmp_path / "a[red]b[" )  # fmt: skip
    assert main(["debug", str(demo), "--against", str(tmp_path / "a[red]b[")]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "error: " in message and "a[red]b[" in message


def test_escaping():
    assert escaped("a\x1bb\n\x85\u202e\ud800é") == "a\\u001bb\\u000a\\u0085\\u202e\\ud800é"
    assert escaped("a\tb\n\x1b", "\t\n") == "a\tb\n\\u001b"
    assert (
        shortened("x" * 100) == "x" * 100 and shortened("a" * 999 + "b") == "a" * 50 + "..." + "a" * 49 + "b"
    ) or len(shortened("x" * 1000)) < 110
    assert listed([str(i) for i in range(10_000)]) == "0, 1, 2, 3, 4, 5, 6, 7, and 9,992 more"
    assert listed(["a", "b"], "; ") == "a; b"

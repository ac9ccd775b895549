"""The commands, in this process where that shows the same, and through a shell's eyes where it does not."""

from __future__ import annotations

import codecs
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rwkv_mlc import Chat, Engine, SamplingParams, UserError, __version__, reference
from rwkv_mlc.artifact import Artifact
from rwkv_mlc.cli import chat, options, stop_strings
from rwkv_mlc.cli.main import main
from rwkv_mlc.engine.templates import load_template
from rwkv_mlc.quantization.schemes import SCHEMES
from rwkv_mlc.weights import open_checkpoint
from support.paths import DEMO
from support.reciter import LONG_TOKEN
from support.synthetic import synthetic_checkpoint

COMMAND = [sys.executable, "-m", "rwkv_mlc"]
GREEDY = ("--temperature", "0")


@pytest.fixture
def run(capsys):
    """Runs a command in this process; returns exit code, stdout and stderr."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return (code, *capsys.readouterr())

    return call


@pytest.fixture
def stdin(monkeypatch):
    return lambda data: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def shell(*arguments: str | Path, **options) -> subprocess.CompletedProcess:
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, timeout=120, **options)


def assert_refused(result: tuple[int, str, str], message: str, told: str = "") -> None:
    """In one sentence, after what was ``told`` of the work before it."""
    code, out, err = result
    assert (code, out) == (2, "") and err.startswith(told)
    err = err[len(told) :]
    assert err.startswith("error: ") and message in err and err.count("\n") == 1


def test_help_waits_for_no_heavy_import():
    code = (
        "import sys\nfrom rwkv_mlc.cli.main import main\n"
        "try: main(['generate', '--help'])\nexcept SystemExit: pass\n"
        "print({'numpy', 'tvm', 'rich', 'prompt_toolkit', 'tokenizers'} & sys.modules.keys())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("usage: rwkv-mlc generate") and result.stdout.endswith("\nset()\n")


def test_version_and_commands():
    result = shell("--version")
    assert (result.returncode, result.stdout.decode()) == (0, f"rwkv-mlc {__version__}{os.linesep}")
    text = shell("--help").stdout.decode()
    for command in ("build", "convert-weight", "gen-config", "compile", "chat", "generate", "inspect", "logits"):
        assert f"\n    {command}" in text


def test_a_real_generation(reciter):
    result = shell("generate", reciter, "--prompt", "Recite:", *GREEDY, "--max-tokens", "28", "--stats")
    assert result.returncode == 0
    assert result.stdout.decode("utf-8") == " abcdefghijklmnopqrstuvwxyz\ufffd\n"
    assert result.stderr.decode().startswith("prompt: 7 tokens, answer: 28 tokens (length), seed: ")
    assert b"tok/s, decode: " in result.stderr


def test_a_real_mistake(tmp_path):
    result = shell("generate", tmp_path, "--prompt", "x")
    assert result.returncode == 2 and result.stdout == b""
    assert result.stderr.startswith(b"error: ") and result.stderr.count(b"\n") == 1
    result = shell("genrate")
    assert result.returncode == 2 and b"did you mean generate?" in result.stderr and b"Traceback" not in result.stderr


ARABIC, UNDERSCORED = "\u0661\u0662", "1_2"


@pytest.mark.parametrize("written", [ARABIC, UNDERSCORED, "9" * 4000, "9" * 5000])
@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "x", "--prompt", "y", "--top-k"),
        ("generate", "x", "--prompt", "y", "--temperature"),
        ("generate", "x", "--prompt", "y", "--seed"),
        ("generate", "x", "--prompt", "y", "--threads"),
        ("logits", "x", "--out", "y", "--tokens"),
        ("dump", "x", "--decode"),
        ("bench", "x", "--prefill"),
        ("build", "--use-cache"),
        ("build", "--max-seq-len"),
        ("build", "--fp32-layers"),
    ],
)
def test_numbers_that_nobody_means(capsys, arguments, written):
    try:
        assert main([*arguments, written]) == 2
    except SystemExit as exit:
        assert exit.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert len(message) < 400 and (len(written) > 4 or written in message or "There is no" in message), message


@pytest.mark.parametrize("argument", ["--" + "x" * 4000, "--top-k=" + "9" * 5000])
def test_what_a_message_quotes_is_short(capsys, argument):
    with pytest.raises(SystemExit):
        main(["generate", "x", "--prompt", "y", argument])
    assert len(capsys.readouterr().err.splitlines()[-1]) < 400
    with pytest.raises(UserError) as found:
        SamplingParams(top_k=10**5000)
    assert str(found.value) == "top_k must be an integer from 0 to 2147483647, not an integer of 16,610 bits."
    assert str(UserError("/a" * 2000 + " is " + "9" * 4000)) == "/a" * 2000 + " is " + "9" * 50 + "..." + "9" * 50


def _restore_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.skipif(sys.platform == "win32", reason="signals and pipes of POSIX")
class TestEndings:
    @pytest.fixture
    def endless(self, reciter):
        """A generation without end, of which the first text was read; it is killed at the end."""
        command = [*COMMAND, "generate", str(reciter), "--prompt", ":", *GREEDY, "--max-tokens", "1000000000"]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, preexec_fn=_restore_ctrl_c) as process:
            assert process.stdout.read(4) == b" abc"
            yield process
            process.kill()

    def test_a_closed_pipe_ends_it_quietly(self, endless):
        endless.stdout.close()
        assert endless.wait(30) == 141
        assert endless.stderr.read() == b""

    def test_ctrl_c_ends_it_quietly(self, endless):
        endless.send_signal(signal.SIGINT)
        _, err = endless.communicate(timeout=30)
        assert (endless.returncode, err) == (130, b"")

    def test_a_long_prompt_shows_on_a_terminal_how_far_it_is(self, reciter, tmp_path):
        import pty

        prompt = tmp_path / "prompt.txt"
        prompt.write_bytes(LONG_TOKEN * (2**20 // len(LONG_TOKEN)) + b":")
        ours, theirs = pty.openpty()
        arguments = ["generate", str(reciter), "--prompt-file", str(prompt), *GREEDY, "--max-tokens", "3"]
        result = subprocess.run([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=theirs, timeout=120)
        os.close(theirs)
        assert (result.returncode, result.stdout) == (0, b" ab\n")
        seen = os.read(ours, 1 << 16).decode()
        os.close(ours)
        assert seen.startswith("\rReading the prompt: 512 of 16385 tokens") and seen.endswith("\r\033[K")


def test_generate_as_json(run, reciter):
    code, out, err = run("generate", reciter, "--prompt", "Recite:", *GREEDY, "--stop", "cde", "--json", "--seed", "7")
    assert (code, err) == (0, "")
    data = json.loads(out)
    stats = data.pop("stats")
    assert data == {
        "model": "reciter-q0f32",
        "prompt": "Recite:",
        "text": " ab",
        "tokens": [ord(letter) + 1 for letter in " abcde"],
        "finish_reason": "stop",
        "seed": 7,
        "prompt_tokens": 7,
    }
    assert (stats["prefill_tokens"], stats["decode_tokens"]) == (7, 5)
    assert stats["decode_tokens_per_second"] == pytest.approx(5 / stats["decode_seconds"])


def test_generate_reads_prompts_from_everywhere(run, stdin, reciter, tmp_path):
    options = (reciter, *GREEDY, "--max-tokens", "3")
    path = tmp_path / "prompt.txt"
    path.write_bytes(b"\xff\xf0\r\n:")
    assert run("generate", *options, "--prompt-file", path) == (0, " ab\n", "")
    for arguments in ((), ("--prompt-file", "-")):
        stdin(b"\xff\xf0\r\n:")
        code, out, _ = run("generate", *options, *arguments, "--json")
        assert code == 0
        assert json.loads(out)["prompt"] == "\ufffd\ufffd\r\n:" and json.loads(out)["prompt_tokens"] == 5
    none = tmp_path / "none"
    reason = f"The prompt {none} cannot be read: No such file or directory."
    assert_refused(run("generate", *options, "--prompt-file", none), reason)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_prompts_with_a_byte_order_mark(run, stdin, demo, tmp_path, encoding):
    """As Windows writes them; their line ends are the user's."""
    text = "User: Who are you? é好\r\n\r\nAssistant:"
    data = text.encode(encoding) if encoding != "utf-16-be" else codecs.BOM_UTF16_BE + text.encode(encoding)
    options = (demo, *GREEDY, "--max-tokens", "3", "--json")
    (tmp_path / "p").write_bytes(data)
    for arguments in (("--prompt-file", tmp_path / "p"), ("--prompt", f"\ufeff{text}"), ()):
        stdin(data)
        _, out, _ = run("generate", *options, *arguments)
        assert json.loads(out)["prompt"] == text
    stdin(codecs.BOM_UTF16_LE + b"abc")
    assert_refused(run("generate", *options), "Standard input begins with the mark of UTF-16 and is not UTF-16")


def test_stop_strings_on_a_command_line(run, reciter):
    for stop, text in ((r"c\x64e", " ab"), (r"\xc3\xa9", " abcdefghijklmnopqrstuvwxyz"), (r"\x62\x63", " a")):
        assert run("generate", reciter, "--prompt", "Recite:", *GREEDY, "--stop", stop) == (0, f"{text}\n", "")
    for stop, message in (
        (r"a\q", "'\\\\q', which means nothing"),
        ("a\\", "which means nothing"),
        (r"\xff", "is not UTF-8"),
    ):
        assert_refused(run("generate", reciter, "--prompt", "x", "--stop", stop), message)


@pytest.mark.parametrize("text", ["\n\n", "a,b;c", " x ", "\\n", "\\", "\t\r\x1b", "é\u3002", "\\x41", "User: "])
def test_stop_strings_are_spelled_as_they_are_read(text):
    spelled = stop_strings.spelled(text)
    assert stop_strings.parse(spelled) == text
    assert not set(spelled) & set(",;\n\t\x1b") and spelled.strip() == spelled


def test_generate_from_an_empty_prompt(run, stdin, demo):
    expected = Engine(demo).generate([0], temperature=0, max_tokens=8).text
    assert run("generate", demo, "--prompt", "", *GREEDY, "--max-tokens", "8") == (0, f"{expected}\n", "")
    stdin(b"")
    assert run("generate", demo, *GREEDY, "--max-tokens", "8") == (0, f"{expected}\n", "")


def test_generate_in_the_chat_template(run, demo):
    code, out, _ = run("generate", demo, "--chat", "--prompt", "Hello!", *GREEDY, "--json")
    template = Engine(demo).template
    plain = template.system_prompt() + template.user_turn("Hello!")
    _, expected, _ = run("generate", demo, "--prompt", plain, *GREEDY, "--stop", "\n\n", "--json")
    assert code == 0
    assert json.loads(out)["text"] == json.loads(expected)["text"].removeprefix(" ") != ""
    assert json.loads(out)["tokens"] == json.loads(expected)["tokens"]


@pytest.mark.parametrize("mode", [(), ("--chat",)])
def test_generate_saves_and_takes_up_a_state(run, demo, tmp_path, mode):
    state, greedy = tmp_path / "a.state", (demo, *GREEDY, "--max-tokens", "12")
    code, first, _ = run("generate", *greedy, *mode, "--prompt", "Who is Tom?", "--save-state", state, "--json")
    assert code == 0
    _, second, _ = run("generate", *greedy, *mode, "--prompt", " And Mia?", "--state", state, "--json")
    engine = Engine(demo)
    if mode:
        template = engine.template
        said = template.system_prompt() + template.user_turn("Who is Tom?") + " " + json.loads(first)["text"]
        said += "\n\n" + template.user_turn(" And Mia?")
        expected = engine.generate(said, temperature=0, max_tokens=12, stop=("\n\n",)).text.removeprefix(" ")
    else:
        read = engine.tokenizer.encode("Who is Tom?") + json.loads(first)["tokens"]
        expected = engine.generate(read + engine.tokenizer.encode(" And Mia?"), temperature=0, max_tokens=12).text
    assert json.loads(second)["text"] == expected


def test_a_saved_state_is_what_was_shown(run, demo, tmp_path):
    """Without the stop string and what followed it, and with the last token; an empty prompt goes on from there."""
    state, options = tmp_path / "a.state", (demo, "--json", "--temperature", "0")
    prompt = "User: Who lives in the red house?\n\nAssistant:"
    _, out, _ = run("generate", *options, "--prompt", prompt, "--max-tokens", "9")
    whole = json.loads(out)
    assert whole["text"] == " Tom the cat lives in the red house."
    for ending in (("--stop", " in the"), ("--stop", " house"), ("--max-tokens", "4")):
        _, out, _ = run("generate", *options, "--prompt", prompt, *ending, "--save-state", state)
        first = json.loads(out)["text"]
        assert whole["text"].startswith(first) and first != whole["text"]
        _, out, _ = run("generate", *options, "--prompt", "", "--state", state, "--stop", "\n")
        assert first + json.loads(out)["text"] == whole["text"] and json.loads(out)["prompt_tokens"] == 0


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_what_a_model_writes_moves_no_cursor(reciter, monkeypatch, capsys, command):
    """On a terminal; a pipe gets it as it is."""
    monkeypatch.setattr(Engine, "stream", lambda *_: iter(["a\x1b]0;t\x07", "\r\tb\n\x9b31m"]))
    monkeypatch.setattr(Chat, "send", lambda *_: (text for text in ("a\x1b]0;t\x07", "\r\tb\n\x9b31m")))
    monkeypatch.setattr(chat, "_lines", lambda _: iter(["hello"]))
    arguments = [command, str(reciter), *(["--prompt", "x"] if command == "generate" else [])]
    assert main(arguments) == 0
    assert "a\x1b]0;t\x07\r\tb\n\x9b31m\n" in capsys.readouterr().out
    monkeypatch.setattr(options.sys.stdout, "isatty", lambda: True)
    assert main(arguments) == 0
    assert "a\\u001b]0;t\\u0007\\u000d\tb\n\\u009b31m\n" in capsys.readouterr().out


def test_generate_refuses(run, demo, reciter, tmp_path):
    state = tmp_path / "a.state"
    assert run("generate", demo, "--prompt", "x", "--max-tokens", "1", "--save-state", state)[0] == 0
    assert_refused(run("generate", reciter, "--prompt", "x", "--state", state), "another model")
    assert_refused(run("generate", reciter, "--prompt", "x", "--top-p", "2"), "top_p must be a number from 0.0 to 1.0")
    assert_refused(run("generate", reciter, "--prompt", "x", "--stop", ""), "stop must be")
    assert_refused(run("generate", reciter, "--prompt", "x", "--device", "tpu"), "Unknown device 'tpu'")
    with pytest.raises(SystemExit, match="2"):
        main(["generate", str(reciter), "--prompt", "x", "--seed", "x"])


@pytest.mark.parametrize("command", [("chat",), ("generate", "--prompt", "x", "--chat"), ("generate", "--prompt", "x")])
def test_what_needs_no_model_is_refused_before_it_is_loaded(capsys, demo, tmp_path, monkeypatch, command):
    monkeypatch.setattr(Engine, "__init__", lambda *_: pytest.fail("the model was loaded"))
    (tmp_path / "junk").write_bytes(b"he who has no state to go on from")
    for arguments, message in (
        (("--device", "gpu"), "Unknown device 'gpu'"),
        (("--top-p", "2"), "top_p must be a number from 0.0 to 1.0, not 2.0."),
        (("--stop", r"\q"), "which means nothing"),
        (("--state", "/nowhere"), "The state /nowhere cannot be read: No such file or directory."),
        (("--state", tmp_path / "junk"), "give a file written by /save or --save-state."),
        (
            ("--think", "banana"),
            "--think is said in the model's chat template; give --chat, too."
            if command[-1] == "x"
            else "has no think mode; leave out --think banana, or build it with",
        ),
    ):
        assert main([command[0], str(demo), *command[1:], *map(str, arguments)]) == 2
        out, err = capsys.readouterr()
        assert message in err and out == ""


def test_a_think_mode_that_there_is_not():
    template = load_template("rwkv_g1")
    with pytest.raises(UserError, match=r"^--think must be one of off, on, a bit, a lot, not 'banana'\.$"):
        template.think_mode("banana", "--think ")


def test_a_library_for_another_cpu_is_refused_before_it_is_loaded(run, reciter, tmp_path):
    folder = Path(shutil.copytree(reciter, tmp_path / "reciter-q0f32"))
    record = json.loads((folder / "build-record.json").read_text(encoding="utf-8"))
    record["libraries"]["llvm"]["cpu_features"].append("amx-fp64")
    (folder / "build-record.json").write_text(json.dumps(record), encoding="utf-8")
    for command in (["generate", folder, "--prompt", "x"], ["chat", folder], ["logits", folder, "--tokens", "1"]):
        extra = ["--out", tmp_path / "x.npy"] if command[0] == "logits" else []
        code, _, err = run(*command, *extra)
        assert code == 2 and "needs amx-fp64, which this CPU lacks" in err and err.count("\n") == 1
    _, out, _ = run("inspect", folder)
    assert "no: " in out and "needs amx-fp64" in out


@pytest.mark.parametrize("arguments", [(), ("--decode",)])
def test_logits(run, demo, tmp_path, arguments):
    out = tmp_path / "logits.npy"
    engine = Engine(demo)
    tokens = engine.tokenizer.encode((DEMO.parent / "heldout.txt").read_bytes())[:100]
    command = ("logits", demo, "--out", out, *arguments)
    assert run(*command, "--tokens", ",".join(map(str, tokens))) == (0, "", "")
    logits = np.load(out)
    assert logits.dtype == np.float32 and logits.shape == (100, engine.config.vocab_size)
    expected = np.concatenate(list(engine.score(tokens, engine.new_state())))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * abs(expected).max())
    assert run(*command, "--prompt", "Hello")[0] == 0
    assert len(np.load(out)) == len(engine.tokenizer.encode("Hello"))
    assert run(*command, "--prompt", "")[0] == 0
    assert len(np.load(out)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["logits.npy"]


def test_logits_refuse_and_leave_nothing(run, demo, tmp_path):
    out = tmp_path / "logits.npy"
    assert_refused(run("logits", demo, "--tokens", "1,768", "--out", out), "between 0 and 767")
    assert_refused(run("logits", demo, "--tokens", "1", "--decode", "--out", tmp_path), "cannot be written")
    assert_refused(run("logits", demo, "--tokens", "1", "--out", out / "none"), "cannot be written")
    with pytest.raises(SystemExit, match="2"):
        main(["logits", str(demo), "--tokens", "1,two", "--out", str(out)])
    assert list(tmp_path.iterdir()) == []


def test_inspect_a_checkpoint(run):
    code, out, err = run("inspect", DEMO, "--json")
    assert (code, err) == (0, "")
    data = json.loads(out)
    assert (data["kind"], data["format"], data["dtypes"]) == ("checkpoint", "huggingface", ["float16", "float32"])
    assert data["model"]["generation"] == "5.2" and data["model"]["num_heads"] == 2
    assert data["model"]["state_bytes"] == 4 * 6 * (128 + 2 * 64 * 64 + 128)
    assert data["tokenizer"]["kind"] == "world"
    groups = {group["name"]: group for group in data["groups"]}
    assert list(groups) == ["embedding", "vectors", "attention matrices", "feed-forward matrices", "head"]
    assert groups["embedding"] == {"name": "embedding", "tensors": 1, "parameters": 768 * 128, "bytes": 2 * 768 * 128}
    assert groups["attention matrices"]["parameters"] == 6 * 5 * 128 * 128
    assert groups["feed-forward matrices"]["parameters"] == 6 * (2 * 448 + 128) * 128
    assert groups["vectors"]["bytes"] == 4 * groups["vectors"]["parameters"]
    for key in ("parameters", "bytes"):
        assert data[key] == sum(group[key] for group in data["groups"])
    header = data["files"][0]["bytes"] - data["bytes"]
    assert 0 < header < 50_000


def test_inspect_an_artifact(run, demo):
    code, out, err = run("inspect", demo, "--json")
    assert (code, err) == (0, "")
    data, artifact = json.loads(out), Artifact.open(demo)
    assert (data["kind"], data["quantization"], data["bits_per_weight"]) == ("artifact", "q0f32", 32)
    assert data["bytes"] == sum(array.nbytes for array in artifact.parameters().values())
    assert data["source"] == {"source": str(DEMO), "format": "huggingface", "sha256": artifact.record.source_sha256}
    (library,) = data["libraries"]
    assert (library["target"], library["runs_here"], library["problem"]) == ("llvm", True, None)
    assert library["cpu_features"] == artifact.record.libraries["llvm"].cpu_features
    assert library["prefill_activations"] == "float32"
    assert library["bytes"] == (demo / library["file"]).stat().st_size
    assert set(library["versions"]) == {"rwkv_mlc", "apache-tvm", "numpy"}


def test_inspect_a_folder_of_artifacts(run, demo, tmp_path):
    shutil.copytree(demo, tmp_path / "one")
    (tmp_path / "two" / "params").mkdir(parents=True)
    code, out, _ = run("inspect", tmp_path)
    assert code == 0 and re.search(r"one +RWKV-5\.2, 6 layers of 128 +q0f32 +5,943,296 +llvm", out)
    assert f"{tmp_path / 'two'} is no artifact: it has no params/mlc-chat-config.json" in out
    _, out, _ = run("inspect", tmp_path, "--json")
    assert [(Path(row["path"]).name, row["problem"] is None) for row in json.loads(out)] == [
        ("one", True),
        ("two", False),
    ]
    assert_refused(run("inspect", tmp_path, "--errors"), "holds 2 artifacts; name one, or leave the flags out")


def test_what_is_no_artifact(run, demo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ("logits", "--tokens", "1", "--out", "x.npy")
    for path, advice in (
        ("village", "there is no such folder; rwkv-mlc build --model CHECKPOINT writes one."),
        (demo / "build-record.json", f"it is a file; name the folder {demo}."),
        (demo.parent, f"it holds some; name one: {', '.join(map(str, sorted(demo.parent.glob('*-q0f32'))))}."),
        (demo.parent / "rwkv-5-vilage-q0f32", f"there is no such folder; did you mean {demo}?"),
    ):
        assert_refused(run(*command, path), f"{path} is no artifact: {advice}")
    shutil.copytree(demo, Path("dist") / demo.name)
    for path, advice in (
        (demo.name, f"did you mean dist/{demo.name}?"),
        ("other", f"there are dist/{demo.name}, and rwkv-mlc build writes others."),
    ):
        assert_refused(run(*command, path), f"{path} is no artifact: there is no such folder; {advice}")
    assert_refused(
        run("gen-config", "--model", demo, "-o", "x"), f"{demo} is an artifact, built already; give the check"
    )
    record = Path("dist") / demo.name / "build-record.json"
    record.unlink()
    assert_refused(run("compile", record.parent, "--target", "llvm"), f"{record} is missing; build the artifact again")
    assert_refused(run("dump", "nowhere"), "nowhere is no artifact: there is no such folder")
    assert_refused(run("dump", DEMO), "is no artifact; of a checkpoint --reference or --with rwkv gives a dump")


def test_inspect_prints_everything_where_there_is_no_terminal(run, demo, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    code, out, _ = run("inspect", demo, "--errors")
    assert code == 0 and "…" not in out
    record = Artifact.open(demo).record
    for text in ("RWKV-5.2, 6 layers of 128, 2 heads of 64", record.source_sha256, str(DEMO), "runs here"):
        assert text in out
    assert " ".join(record.libraries["llvm"].cpu_features) in out
    assert "float32 activations" in out
    rows = [line.split() for line in out.splitlines() if line.strip().startswith("model.") or " head.weight" in line]
    assert len(rows) == 1 + 6 * 8 + 1
    assert all(row[1:5] == [row[1], "x", row[3], "float32"] and row[5] == "0.00e+00" for row in rows)


@pytest.fixture
def quantized(capsys, tmp_path) -> Path:
    """The demo model in q4f16_1, without a library."""
    command = ["build", "--model", str(DEMO), "--quantization", "q4f16_1", "--convert-weights-only"]
    assert main([*command, "--artifact-path", str(tmp_path)]) == 0
    capsys.readouterr()
    return tmp_path / f"{DEMO.name}-q4f16_1"


def test_inspect_measures_what_quantization_lost(run, quantized):
    _, out, _ = run("inspect", quantized, "--errors", "--json")
    errors = json.loads(out)["errors"]
    stored = Artifact.open(quantized).dequantized_parameters()
    _, exact = reference.load(open_checkpoint(str(DEMO)))
    assert [error["name"] for error in errors] == [
        name for name in exact if exact[name].ndim == 2 and "time" not in name
    ]
    for error in errors:
        lost = stored[error["name"]] - exact[error["name"]]
        scale = np.sqrt(np.mean(exact[error["name"]] ** 2))
        assert error["relative_rms"] == pytest.approx(np.sqrt(np.mean(lost**2)) / scale, rel=1e-5)
        row, column = error["worst_row"], error["worst_column"]
        group = lost[row, column : column + 32]
        assert error["worst_group"] == pytest.approx(np.sqrt(np.mean(group**2)) / scale, rel=1e-5)
        assert error["stored"] == "4 bits / 32"
    _, against, _ = run("inspect", quantized, "--errors", DEMO, "--json")
    assert json.loads(against)["errors"] == errors

    _, out, _ = run("inspect", DEMO, "--quantization", "q4f16_1", "--errors", "--json")
    (cost,) = json.loads(out)["schemes"]
    assert cost["tensors"] == errors
    assert cost["bytes"] == sum(array.nbytes for array in Artifact.open(quantized).parameters().values())
    assert cost["worst_group"] == max(error["worst_group"] for error in errors)


def test_inspect_shows_what_every_scheme_costs(run):
    _, out, _ = run("inspect", DEMO, "--quantization", "all", "--json")
    costs = {cost["quantization"]: cost for cost in json.loads(out)["schemes"]}
    assert list(costs) == list(SCHEMES)
    assert "tensors" not in costs["q0f32"] and costs["q0f32"]["relative_rms"] == 0
    assert costs["q8f16_1"]["relative_rms"] < costs["q4f16_1"]["relative_rms"] < costs["q3f16_1"]["relative_rms"]
    assert costs["q3f16_1"]["bytes"] < costs["q4f16_1"]["bytes"] < costs["q8f16_1"]["bytes"] < costs["q0f16"]["bytes"]
    _, out, _ = run("inspect", DEMO, "--quantization", "all")
    assert all(f"\n  {name}" in out for name in SCHEMES)


def test_inspect_says_which_schemes_cannot_hold_a_checkpoint(run, tmp_path):
    path, tensors = tmp_path / "wild.safetensors", synthetic_checkpoint("4", layers=1)
    tensors["blocks.0.att.key.weight"][3, 5] = 1e6
    save_file(tensors, path)
    _, out, _ = run("inspect", path, "--quantization", "all", "--json")
    problems = {cost["quantization"]: cost.get("problem") for cost in json.loads(out)["schemes"]}
    assert [name for name, problem in problems.items() if problem is None] == ["q0f32", "q4f32_1"]
    _, out, _ = run("inspect", path, "--quantization", "all")
    assert problems["q0f16"].startswith("blocks.0.att.key.weight holds") and f"\nq0f16: {problems['q0f16']}\n" in out
    assert_refused(run("inspect", path, "--quantization", "q0f16"), problems["q0f16"], "measuring q0f16, 9 steps\n")
    tensors["blocks.0.att.key.weight"][3, 5] = np.nan
    save_file(tensors, path)
    result = run("inspect", path, "--quantization", "q0f32")
    assert_refused(result, "blocks.0.att.key.weight holds NaN or infinite", "measuring q0f32, 9 steps\n")


def test_inspect_refuses(run, quantized, tmp_path):
    assert_refused(run("inspect", tmp_path / "none"), "There is no file or folder")
    assert_refused(run("inspect", DEMO, "--quantization", "q5"), "Unknown quantization 'q5'; did you mean")
    assert_refused(run("inspect", DEMO, "--errors"), "name one with --quantization")
    assert_refused(run("inspect", quantized, "--quantization", "q4f16_1"), "is quantized already")
    assert_refused(
        run("inspect", quantized, "--errors", quantized / "params" / "params_shard_0.bin"), "is no checkpoint"
    )
    record = json.loads((quantized / "build-record.json").read_text(encoding="utf-8"))
    for source, sha256, message in (
        (str(DEMO), "0" * 64, "has changed since"),
        ("elsewhere.pth", record["source_sha256"], "elsewhere.pth, which is not here; name the checkpoint"),
    ):
        changed = record | {"source": source, "source_sha256": sha256}
        (quantized / "build-record.json").write_text(json.dumps(changed), encoding="utf-8")
        assert_refused(run("inspect", quantized, "--errors"), message)

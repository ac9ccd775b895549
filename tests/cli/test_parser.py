"""Mistyped commands, flags and names: what they are taken to mean, and that nothing is taken for another by its beginning."""

from __future__ import annotations

import pytest

from rwkv_mlc.cli.main import main
from support.paths import DEMO


def refused(capsys, line: str) -> str:
    """The last line that a command writes when its arguments are wrong."""
    with pytest.raises(SystemExit) as exit:
        main(line.split())
    out, err = capsys.readouterr()
    assert exit.value.code == 2 and out == "" and err.startswith("usage: ")
    return err.splitlines()[-1]


@pytest.mark.parametrize(
    "line, message",
    [
        ("genrate", "rwkv-mlc: error: there is no command genrate; did you mean generate?"),
        ("convert-w", "rwkv-mlc: error: there is no command convert-w; did you mean convert-weight?"),
        ("serve", "rwkv-mlc: error: there is no command serve; the commands are build, convert-weight, gen-config,"),
        ("--model M build", "there is no --model; the flags of a command follow it, and rwkv-mlc COMMAND --help lists"),
        (
            "build --sep-embed",
            "there is no --sep-embed: the embedding is a part of the model, as it was for every RWKV;",
        ),
        ("build --num-shards=2", "there is no --num-shards: models are not split among devices; leave it out"),
        ("build --use-cache-graph", "there is no --use-cache-graph; did you mean --use-cache?"),
        ("build --modle M", "rwkv-mlc build: error: there is no --modle; did you mean --model?"),
        ("generate D --max_tokens 3", "there is no --max_tokens; did you mean --max-tokens?"),
        ("generate D -prompt x", "there is no -prompt; did you mean --prompt?"),
        ("generate D --pro x", "there is no --pro; did you mean --prompt or --prompt-file?"),
        ("generate -help", "there is no -help; did you mean --help?"),
        ("convert-weight -output x", "there is no -output; did you mean --output?"),
        ("logits D --tokns 1", "there is no --tokns; did you mean --tokens?"),
        ("chat D --whatever", "there is no --whatever; rwkv-mlc chat --help lists the flags"),
        ("generate D --prompt --yes=no", "there is no --yes; a value that begins with - is written --prompt=--yes=no"),
        ("generate D --prompt=-x --stop", "argument --stop: expected one argument"),
        ("bench D --threads -1", "argument --threads: expected an integer of at least 1"),
        ("logits D --out x", "one of the arguments --tokens --prompt is required"),
    ],
)
def test_what_is_meant(capsys, line, message):
    assert message in refused(capsys, line)


def test_no_word_at_all_is_no_beginning(capsys):
    with pytest.raises(SystemExit):
        main([""])
    assert "there is no command ''; the commands are build, convert-weight," in capsys.readouterr().err


@pytest.mark.parametrize("flag, whole", [("--quant", "--quantization"), ("--temp", "--temperature")])
def test_flags_are_written_in_full(capsys, flag, whole):
    command = "build" if flag == "--quant" else "generate D"
    assert refused(capsys, f"{command} {flag} 1").endswith(f"there is no {flag}; did you mean {whole}?")


def test_values_are_no_flags(capsys):
    for line in ("generate nowhere --prompt=-x", "convert-weight --model nowhere -odist/x", "chat nowhere -- "):
        assert main(line.split()) == 2
        assert "nowhere" in capsys.readouterr().err
    assert main(["generate", "nowhere", "--prompt", "--- and so on"]) == 2
    assert capsys.readouterr().err.startswith("error: nowhere is no artifact")


def test_without_a_command_there_is_help(capsys):
    with pytest.raises(SystemExit) as exit:
        main([])
    assert exit.value.code == 2 and "find the first value that an artifact computes wrong" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--quantization", "q4f16"], "Unknown quantization 'q4f16'; did you mean q4f16_1? Valid are q0f32, "),
        (["--quantization", "q4"], "did you mean q4f16_1?"),
        (["--quantization", "q8f16"], "did you mean q8f16_1?"),
        (["--quantization", "Q4F16_1"], "did you mean q4f16_1?"),
        (["--target", "cpu"], "Unknown target 'cpu'; did you mean llvm? Valid are auto, llvm, "),
        (["--target", "Vulkan"], "did you mean vulkan?"),
    ],
)
def test_names_that_are_meant(capsys, arguments, message):
    assert main(["build", "--model", str(DEMO), *arguments]) == 2
    assert message in capsys.readouterr().err

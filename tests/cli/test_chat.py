"""The ``Chat`` class and the command over it, from a pipe and on a terminal."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rwkv_mlc import Chat, Engine, Thought
from rwkv_mlc.cli import options
from rwkv_mlc.cli.main import main
from rwkv_mlc.engine.engine import Answer
from rwkv_mlc.engine.runner import Runner
from rwkv_mlc.engine.templates import load_template
from rwkv_mlc.text_encoding import lines_in_utf8
from support.reciter import LONG_TOKEN, RECITED

RECITAL = RECITED.strip()
PROMPT = "\033[?2004h"  # prompt_toolkit turns bracketed paste on when it begins to read a line


def greedy(engine: Engine, **changes) -> Chat:
    chat = Chat(engine)
    chat.params = dataclasses.replace(chat.params, temperature=0.0, **changes)
    return chat


@pytest.fixture
def read(reciting, monkeypatch) -> list[int]:
    """Every token that the reciter's library reads from here on."""
    tokens: list[int] = []
    call = reciting.runner.call

    def listening(function, sequences, *where):
        tokens.extend(sequences[0])
        return call(function, sequences, *where)

    monkeypatch.setattr(reciting.runner, "call", listening)
    return tokens


def transcript(engine: Engine, *turns: tuple[str, str]) -> str:
    return engine.template.system_prompt() + "".join(f"User: {said}\n\nAssistant:{heard}\n\n" for said, heard in turns)


def test_the_state_reads_the_transcript_once(reciting, read):
    chat = greedy(reciting, max_tokens=8)
    assert "".join(chat.send("One\r\n\r\n\ntwo ")) == " abcdefg"
    assert chat.answer.finish_reason == "length"
    chat.params = dataclasses.replace(chat.params, max_tokens=20, stop=("fgh", "\n\n"))
    assert "".join(chat.send("Again")) == " abcde"
    assert chat.answer.finish_reason == "stop"
    # The start of the stop string had been read when its end was met.
    expected = transcript(reciting, ("One\ntwo", " abcdefg"), ("Again", " abcdefg"))
    assert reciting.tokenizer.decode(read) == expected


def test_an_answer_that_is_closed_counts_as_the_whole(reciting, read):
    chat = greedy(reciting)
    pieces = chat.send("Hello")
    assert [next(pieces) for _ in range(4)] == list(" abc")
    pieces.close()
    assert chat.answer.text == " abc" and chat.answer.finish_reason is None
    assert "".join(chat.send("Go on")).startswith(" abc")
    assert reciting.tokenizer.decode(read).startswith(transcript(reciting, ("Hello", " abc"), ("Go on", " abc"))[:-2])


def test_a_message_whose_reading_fails_was_never_sent(engine, monkeypatch):
    chat, other = greedy(engine), greedy(engine)

    def interrupt(seen: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "prefill_chunk", 4)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(engine, "progress", interrupt)
        next(chat.send("A message of several chunks, which makes them differ"))
    assert "".join(chat.send("Hello!")) == "".join(other.send("Hello!"))


def test_a_conversation_goes_on_from_a_file(engine, tmp_path):
    chat = greedy(engine)
    for _ in chat.send("Hello!"):
        pass
    chat.save(tmp_path / "a.state")
    expected = "".join(chat.send("Who are you?"))
    fresh = greedy(engine)
    fresh.load(tmp_path / "a.state")
    assert "".join(fresh.send("Who are you?")) == expected
    fresh.reset()
    assert "".join(fresh.send("Hello!")) == "".join(greedy(engine).send("Hello!"))


def test_settings_of_a_chat_keep_the_stop_strings_of_its_template(engine):
    assert Chat(engine).params == dataclasses.replace(engine.defaults, stop=("\n\n",))
    params = engine.chat_params(stop=("ab", "\n\n", "c"), seed=3)
    assert params == dataclasses.replace(engine.defaults, stop=("\n\n", "ab", "c"), seed=3)


def test_what_is_displayed_of_an_answer(engine, monkeypatch):
    chat = Chat(engine)
    pieces = ["", "  ", " It", " is", " "]
    assert "".join(chat.displayed(pieces)) == "It is "
    monkeypatch.setattr(engine, "template", load_template("plain"))
    assert list(chat.displayed(pieces)) == pieces


def chat(monkeypatch, capsys, lines: str | bytes, *arguments: str | Path) -> tuple[list[str], str]:
    """Lines of stdout after the opening ones, and stderr, of a piped chat."""
    data = lines if isinstance(lines, bytes) else lines.encode("utf-8")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert main(["chat", *map(str, arguments)]) == 0
    out, err = capsys.readouterr()
    opening, separator, rest = out.partition("Ctrl-C stops an answer.\n")
    assert separator and opening.startswith("Loading model...\nUse MLC config: ")
    for line in ("Use model weights: ", "Use model library: ", "Running system prompts...", "System prompts finished"):
        assert f"\n{line}" in opening
    return rest.splitlines(), err


def test_piped_lines_are_answered(monkeypatch, capsys, reciter):
    out, err = chat(monkeypatch, capsys, "hello\n\n/exit\nnever\n", reciter, "--temperature", "0", "--max-tokens", "4")
    assert (out, err) == (["Assistant: abc"], "")


def test_piped_lines_need_not_be_utf_8_nor_end(monkeypatch, capsys, reciter):
    out, err = chat(monkeypatch, capsys, b"\xff\xf0", reciter, "--temperature", "0", "--stop", "bc")
    assert (out, err) == (["Assistant: a"], "")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_piped_lines_with_a_byte_order_mark(monkeypatch, capsys, reciter, encoding):
    """As PowerShell sends them."""
    lines = ("\ufeff" if encoding == "utf-16-be" else "") + "/set max_tokens=4\r\nhéllo\r\n\r\n/exit\r\nnever\r\n"
    sent: list[str] = []
    send = Chat.send
    monkeypatch.setattr(Chat, "send", lambda self, text: sent.append(text) or send(self, text))
    out, err = chat(monkeypatch, capsys, lines.encode(encoding), reciter, "--temperature", "0")
    assert (out[1:], err, sent) == (["Assistant: abc"], "", ["héllo"])


def test_lines_come_one_by_one_whatever_their_encoding():
    """The second is not waited for."""
    read, write = os.pipe()
    with open(read, "rb") as stream, open(write, "wb", buffering=0) as pipe:
        lines = lines_in_utf8(stream, "stdin")
        for i, text in enumerate(("one\r\n", "two\n", "three")):
            pipe.write(text.encode("utf-16-le" if i else "utf-16"))
            if i == 2:
                pipe.close()
            assert next(lines).decode() == text.strip()
        assert list(lines) == []


@pytest.mark.parametrize(
    "line, sent",
    [
        ("/home/me/notes.txt is where?", "/home/me/notes.txt is where?"),
        ("/etc/hosts", "/etc/hosts"),
        ("/x.py fails", "/x.py fails"),
        ("/3 of them", "/3 of them"),
        ("/", "/"),
        ("//help", "/help"),
        ("//home//x", "/home//x"),
        ("// a comment", "/ a comment"),
        ("  //help me", "  /help me"),
        ("what is //x?", "what is //x?"),
    ],
)
def test_messages_that_begin_with_a_slash(monkeypatch, capsys, reciter, line, sent):
    messages: list[str] = []
    monkeypatch.setattr(Chat, "send", lambda _, text: messages.append(text) or (piece for piece in ("yes",)))
    out, err = chat(monkeypatch, capsys, f"{line}\n", reciter)
    assert (messages, out, err) == ([sent], ["Assistant: yes"], "")


def test_a_model_without_roles_goes_on_with_the_line(monkeypatch, capsys, reciter, tmp_path):
    folder = Path(shutil.copytree(reciter, tmp_path / "plain"))
    path = folder / "params" / "mlc-chat-config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"conv_template": load_template("plain").to_dict()}
    path.write_text(json.dumps(config), encoding="utf-8")
    out, err = chat(monkeypatch, capsys, "Recite:\r\nwxy\n", folder, "--temperature", "0", "--max-tokens", "4")
    assert (out, err) == ([" abc", "zé\ufffd"], "")


def test_ctrl_c_stops_the_reading_of_a_message(monkeypatch, capsys, reciter):
    def interrupt(read: int, total: int) -> None:
        if read < total:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(options, "prompt_progress", lambda: interrupt)
    message = LONG_TOKEN.decode() * 2000
    out, err = chat(monkeypatch, capsys, f"{message}\nhello\n", reciter, "--temperature", "0", "--max-tokens", "4")
    assert out == ["", "Assistant: abc"]
    assert err == "Stopped before the whole message was read; it counts as never sent.\n"


def test_settings(monkeypatch, capsys, reciter):
    first = "/set temperature=0;stop=zz,cd;max_tokens=3\nhello\n/set max_tokens=100\nhello\n"
    out, err = chat(monkeypatch, capsys, f"{first}/set\n/set stop=\\n;seed=5\n/set seed=none", reciter)
    assert err == "" and out[1] == "Assistant: ab" and out[3] == "Assistant: ab"
    assert out[4].startswith("temperature=0.0; top_p=0.3; top_k=0; ")
    assert out[4].endswith("seed=none; max_tokens=100; stop=\\n\\n,zz,cd")
    assert out[5].endswith("seed=5; max_tokens=100; stop=\\n\\n,\\n")
    assert "seed=none" in out[6]
    strange = r"/set stop=a\x2cb\x3b,\t\\n,\x20x"
    out, err = chat(monkeypatch, capsys, f"{strange}\n", reciter)
    assert err == "" and out[0].endswith(r"stop=\n\n,a\x2cb\x3b,\t\\n,\x20x")


@pytest.mark.parametrize(
    "line, message",
    [
        ("/foo bar", "Unknown command /foo; /help lists the commands, and //foo sends /foo as text."),
        ("/hlep", "Unknown command /hlep; did you mean /help? /help lists the commands, and //hlep"),
        ("/Save x", "Unknown command /Save; did you mean /save? "),
        ("/reset!", "Unknown command /reset!; did you mean /reset? "),
        ("/set stop=\\q", "A stop string has '\\\\q', which means nothing: in it \\n is a line end"),
        ("/set temperature=warm", "temperature must be a number, not 'warm'."),
        ("/set temperature=nan", "temperature must be a number from 0.0 to 100.0, not nan."),
        ("/set top_k=1;max_tokens=0", "max_tokens must be an integer from 1"),
        ("/set top_k=0.5", "top_k must be an integer, not '0.5'."),
        ("/set hotness=1", "/set takes key=value with a key of temperature, "),
        ("/set temperature", "/set takes key=value with a key of temperature, "),
        ("/save", "Give the name of a file."),
        ("/save /none/a.state", "The state cannot be written to /none/a.state"),
        ("/load /none/a.state", "The state /none/a.state cannot be read"),
        ("/reload /none", "/none is no artifact"),
    ],
)
def test_mistakes_cost_one_line_and_the_chat_goes_on(monkeypatch, capsys, reciter, line, message):
    out, err = chat(monkeypatch, capsys, f"{line}\nhello\n", reciter, "--temperature", "0", "--max-tokens", "4")
    assert out[-1] == "Assistant: abc"
    assert err.startswith(f"error: {message}") and err.count("\n") == 1


CALL = '{"name": "clock", "arguments": {"town": "Bath\\u001b", "h": 24}}'


@pytest.fixture
def thinker(reciter, tmp_path, monkeypatch) -> Path:
    """The reciter with G1's template, which has a thought before it says what it recites."""
    folder = Path(shutil.copytree(reciter, tmp_path / "thinker"))
    path = folder / "params" / "mlc-chat-config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"conv_template": load_template("rwkv_g1").to_dict()}
    path.write_text(json.dumps(config), encoding="utf-8")
    written = {" <think": ">\nLet me\x1b[0m see.\n</think>\nYes.", "</think": ">\nNo.", "```json": f" {CALL}```"}
    written |= {
        "Clock?\n\nAssistant: <think></think": f">\n```json{CALL}```",
        "C\n\nAssistant: <think></think": ">\nCold.",
    }
    make = Answer.__init__

    def scripted(self, engine, prompt, *others):
        make(self, engine, prompt, *others)
        text = next((written[end] for end in sorted(written, key=len, reverse=True) if prompt.endswith(end)), "?")
        tokens = iter([*engine.tokenizer.encode(text), 0])
        monkeypatch.setattr(engine, "choose", lambda samplers, logits: [next(tokens)])

    monkeypatch.setattr(Answer, "__init__", scripted)
    return folder


def test_thoughts_in_a_pipe(monkeypatch, capsys, thinker):
    """Nothing is lost."""
    lines = "Is it?\n/set think=a bit;seed=1\nIs it?\n/set think=off\nIs it?\n/set think=none\nIs it?\n/set\n"
    out, err = chat(monkeypatch, capsys, lines, thinker, "--think", "on")
    thought = ["Assistant: <think>", "Let me\x1b[0m see.", "</think>", "Yes."]
    assert err == "" and [line for line in out if not line.startswith("temperature=")] == [
        *thought,
        *thought,
        *["Assistant: No."] * 2,
    ]
    assert [line.rpartition("; ")[2] for line in out if line.startswith("temperature=")] == [
        "think=a bit",
        "think=off",
        "think=off",
        "think=off",
    ]


def test_thoughts_on_a_terminal_are_dim(monkeypatch):
    assert options.shown(Thought("a\x1b")) == "a\x1b"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert options.shown(Thought("a\x1b")) == "\x1b[2ma\\u001b\x1b[22m" and options.shown("a") == "a"


def test_think_modes_that_are_not_there(monkeypatch, capsys, thinker, reciter):
    out, err = chat(monkeypatch, capsys, "/set think=much;max_tokens=1\nIs it?\n", thinker, "--think", "on")
    assert err == "error: think must be one of off, on, a bit, a lot, not 'much'.\n" and out[-1] == "Yes."
    assert main(["chat", str(reciter), "--think", "on"]) == 2
    assert "The model's template, rwkv_world, has no think mode; leave out --think on" in capsys.readouterr().err
    out, err = chat(monkeypatch, capsys, "/set think=off\nhello\n", reciter, "--temperature", "0", "--max-tokens", "4")
    assert "has no think mode" in err and out == ["Assistant: ?"]
    assert main(["generate", str(thinker), "--prompt", "x", "--think", "on"]) == 2
    assert "--think is said in the model's chat template; give --chat, too." in capsys.readouterr().err


def test_thoughts_that_take_all_tokens(monkeypatch, capsys, thinker):
    _, err = chat(monkeypatch, capsys, "Is it?\n", thinker, "--think", "on", "--max-tokens", "5")
    assert err == "The 5 tokens were thoughts alone; /set max_tokens=20 allows more.\n"


def test_a_stop_string_amid_the_thoughts(monkeypatch, capsys, thinker):
    """Nothing is answered, which is said; without it, the message is answered once more."""
    out, err = chat(monkeypatch, capsys, "Is it?\n/set stop=,\n", thinker, "--think", "on", "--stop", "see")
    assert out[:2] == ["Assistant: <think>", "Let me\x1b[0m"] and out[2].startswith("temperature=")
    assert err == "The answer has thoughts alone; /retry begins it once more.\n"
    _, err = chat(monkeypatch, capsys, "Is it?\n", thinker, "--think", "on")
    assert err == ""


def test_ctrl_c_amid_the_thoughts(monkeypatch, capsys, thinker, tmp_path):
    """The conversation has the message and no answer; once more, it has what it would have had without the first one."""
    send = Chat.send
    interrupts = iter([False, False, True])

    def interrupted(self, *arguments):
        for piece in send(self, *arguments):
            if next(interrupts, False):
                signal.raise_signal(signal.SIGINT)
            yield piece

    monkeypatch.setattr(Chat, "send", interrupted)
    lines = f"Is it?\n/save {tmp_path / 'a'}\n/retry\n/save {tmp_path / 'b'}\n"
    out, err = chat(monkeypatch, capsys, lines, thinker, "--think", "on")
    assert err == "" and out[:3] == ["Assistant: <think>", "Let", f"Saved the conversation to {tmp_path / 'a'}"]
    assert out[3:7] == ["Assistant: <think>", "Let me\x1b[0m see.", "</think>", "Yes."]
    chat(monkeypatch, capsys, f"Is it?\n/save {tmp_path / 'c'}\n", thinker, "--think", "on")
    assert (tmp_path / "a").read_bytes() != (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()


def test_a_generation_with_thoughts(monkeypatch, capsys, thinker, tmp_path):
    arguments = ["generate", str(thinker), "--chat", "--think", "a lot", "--prompt", "Is it?", "--save-state"]
    assert main([*arguments, str(tmp_path / "a"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["text"], report["reasoning"]) == ("Yes.", "Let me\x1b[0m see.")
    assert report["prompt_tokens"] == len("User: Is it? (think a lot)\n\nAssistant: <think")
    assert main([*arguments, str(tmp_path / "b")]) == 0
    assert capsys.readouterr().out == "<think>\nLet me\x1b[0m see.\n</think>\nYes.\n"
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_conversation_longer_than_the_training_is_warned_of_once(monkeypatch, capsys, reciter, tmp_path):
    folder = Path(shutil.copytree(reciter, tmp_path / "short"))
    path = folder / "params" / "mlc-chat-config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model_config"]["context_length"] = 230
    path.write_text(json.dumps(config), encoding="utf-8")
    lines = "hello\n" * 4 + f"/save {tmp_path / 'a'}\n/reset\n" + "hello\n" * 3
    out, err = chat(monkeypatch, capsys, lines, folder, "--temperature", "0", "--max-tokens", "4")
    assert out.count("Assistant: abc") == 7
    _, again = chat(monkeypatch, capsys, f"/load {tmp_path / 'a'}\nhello\n/load {tmp_path / 'a'}\nhello\nhello", folder)
    assert again.count("\n") == again.count("more than the 230 of the texts") == 2
    turn = len("User: hello\n\nAssistant: abc\n\n")
    length = len(load_template("rwkv_world").system_prompt()) + turn
    length += -(-(231 - length) // turn) * turn
    assert err == 2 * (
        f"The conversation has {length} tokens, more than the 230 of the texts that the model was trained on; where it gets "
        "worse, /reset starts afresh.\n"
    )


def tools_file(folder: Path, tools: object) -> Path:
    path = folder / "tools.json"
    path.write_text(json.dumps(tools), encoding="utf-8")
    return path


def test_a_function_is_called_and_answered_in_a_pipe(monkeypatch, capsys, thinker, tmp_path):
    """The answer is on stdout as the model writes it, and what to do on stderr."""
    tools = [{"name": "clock", "parameters": {"town": "string"}}, {"type": "function", "function": {"name": "f"}}]
    prompts: list[str] = []
    send = Engine.encode
    monkeypatch.setattr(
        Engine, "encode", lambda self, prompt, *rest: prompts.append(prompt) or send(self, prompt, *rest)
    )
    resets: list[list[dict]] = []
    reset = Chat.reset
    monkeypatch.setattr(Chat, "reset", lambda self: resets.append(self.tools) or reset(self))
    lines = "/tools\nClock?\n/result 3 C\n/call Now!\n/tools none\nClock?\n"
    out, err = chat(monkeypatch, capsys, lines, thinker, "--tools", tools_file(tmp_path, tools))
    shown = f"Assistant: ```json{CALL}```"
    called = [shown, "Assistant: Cold.", f"Assistant: ```json {CALL}```"]
    assert out == ["The model may call clock, f", *called, "The model is offered no functions", shown]
    said = 'The model calls clock(town="Bath\\u001b", h=24); /result TEXT tells it what that gave.\n'
    assert err == 2 * said and resets == [tools, []]
    assert "User: Function output:\n3 C\n\nAssistant: <think></think" in prompts
    assert "User: Now!\n\nAssistant: ```json" in prompts


def test_functions_offered_later_begin_the_conversation_afresh(monkeypatch, capsys, thinker, tmp_path):
    lines = f"Is it?\n/tools {tools_file(tmp_path, [{'name': 'f'}])}\n/save {tmp_path / 'a'}\n/reload\n/save {tmp_path / 'b'}"
    out, err = chat(monkeypatch, capsys, lines, thinker)
    assert err == "" and out[:2] == ["Assistant: No.", "The model may call f"]
    engine = Engine(thinker)
    state = engine.new_state()
    engine.prefill(engine.tokenizer.encode(engine.template.system_prompt([{"name": "f"}])), state)
    engine.save_state(state, tmp_path / "c")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ({"name": "f"}, "holds a dict, expected a list"),
        (["f"], "gives [0] as 'f', expected an object"),
        ([{"name": "f"}, {"parameters": {}}], "gives [1] as {'parameters': {}}, expected a function with a \"name\""),
        ([{"type": "function", "function": {"name": ""}}], 'expected a function with a "name"'),
    ],
)
def test_functions_that_are_none(monkeypatch, capsys, thinker, tmp_path, tools, message):
    path = tools_file(tmp_path, tools)
    assert main(["chat", str(thinker), "--tools", str(path)]) == 2
    advice = "; give a JSON list of functions, each an object with a name.\n"
    err = capsys.readouterr().err
    assert err.startswith(f"error: {path} ") and message in err and err.endswith(advice)
    lines = f"/tools {path}\n/tools\n/tools {tmp_path / 'none'}\n/call\n/result\n"
    out, err = chat(monkeypatch, capsys, lines, thinker)
    assert out == ["The model is offered no functions"]
    assert [message in err.splitlines()[0], *(line.split(";")[0] for line in err.splitlines()[1:])] == [
        True,
        f"error: {tmp_path / 'none'} is missing",
        "error: Give the message that a call is to answer.",
        "error: Give what the function gave, such as /result 30 degrees.",
    ]


def test_functions_need_a_template_with_tools(monkeypatch, capsys, reciter, tmp_path):
    path = tools_file(tmp_path, [{"name": "f"}])
    assert main(["chat", str(reciter), "--tools", str(path)]) == 2
    message = "error: The model's template, rwkv_world, has no form for tools; leave them out.\n"
    assert capsys.readouterr().err == message
    lines = f"/tools {path}\n/call x\n/result x\n/tools\nhello\n"
    out, err = chat(monkeypatch, capsys, lines, reciter, "--temperature", "0", "--max-tokens", "4")
    assert (out, err) == (["", "The model is offered no functions", "Assistant: abc"], 3 * message)


def test_the_last_message_is_answered_once_more(monkeypatch, capsys, reciter, tmp_path):
    """As if the first answer had not been given."""
    lines = ["hello", "/set max_tokens=3", "/retry", f"/save {tmp_path / 'a'}", "/retry", f"/save {tmp_path / 'b'}"]
    settings = ("--temperature", "0", "--max-tokens", "6")
    out, err = chat(monkeypatch, capsys, "\n".join(lines), reciter, *settings)
    assert err == "" and [line for line in out if line.startswith("Assistant")] == [
        "Assistant: abcde",
        *["Assistant: ab"] * 2,
    ]
    chat(monkeypatch, capsys, f"hello\n/save {tmp_path / 'c'}", reciter, "--temperature", "0", "--max-tokens", "3")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()
    for line in ("/reset", f"/load {tmp_path / 'a'}"):
        _, err = chat(monkeypatch, capsys, f"/retry\nhello\n{line}\n/retry", reciter, *settings)
        assert err == 2 * "error: There is no message to be answered once more; send one.\n"


def test_stats_reset_help(monkeypatch, capsys, reciter):
    out, err = chat(monkeypatch, capsys, "/stats\n/reset\n/help\n", reciter)
    assert err == "" and out[1] == "RESET CHAT SUCCESS"
    prefill, decode, threads = out[0].split(", ", 2)
    assert float(prefill.removeprefix("prefill: ").removesuffix(" tok/s")) > 0
    assert decode == "decode: 0.0 tok/s" and re.match(r"\d+ threads?\b", threads)
    assert [line.split()[0] for line in out[3:] if line.startswith("  /")] == [
        f"/{name}"
        for name in (
            "help",
            "exit",
            "stats",
            "retry",
            "reset",
            "reload",
            "set",
            "save",
            "load",
            "tools",
            "call",
            "result",
        )
    ]


def test_reload_takes_the_settings_along(monkeypatch, capsys, demo, reciter):
    lines = f"/set max_tokens=4\nhello\n/reload {reciter}\nhello\n/reload\nhello\n"
    out, err = chat(monkeypatch, capsys, lines, demo, "--temperature", "0")
    assert err == ""
    assert [line for line in out if line.startswith("Assistant:")][1:] == ["Assistant: abc"] * 2
    assert sum(str(demo) in line for line in out) == 0 and sum(str(reciter) in line for line in out) == 6


def test_a_conversation_saved_by_one_chat_is_loaded_by_another(monkeypatch, capsys, demo, reciter, tmp_path):
    state = tmp_path / "a.state"
    greedy = ("--temperature", "0")
    out, _ = chat(monkeypatch, capsys, f"Hello!\n/save {state}\nWho are you?\n", demo, *greedy)
    assert out[1] == f"Saved the conversation to {state}"
    assert chat(monkeypatch, capsys, f"/load {state}\nWho are you?\n", demo, *greedy) == (
        [f"Go on from {state}", out[2]],
        "",
    )
    assert chat(monkeypatch, capsys, "Who are you?\n", demo, *greedy, "--state", state) == ([out[2]], "")
    _, err = chat(monkeypatch, capsys, f"/load {state}\n", reciter)
    assert err.startswith("error: ") and "another model" in err


def test_a_system_message_of_ones_own(monkeypatch, capsys, demo):
    _, err = chat(monkeypatch, capsys, "/stats\n", demo, "--system", "A" * 5000)
    assert err == ""


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are POSIX")
class TestTerminal:
    @pytest.fixture
    def terminal(self, reciter):
        """A chat on a pseudo-terminal; it is killed at the end."""
        with self.chat_of(reciter) as terminal:
            yield terminal

    @contextmanager
    def chat_of(self, artifact: Path) -> Iterator[Terminal]:
        import pty

        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "rwkv_mlc", "chat", str(artifact), "--temperature", "0"]
        environment = os.environ | {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
        process = subprocess.Popen(
            [*command, "--max-tokens", "1000000000"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(theirs)
        try:
            yield Terminal(ours, process)
        finally:
            process.kill()
            process.wait()
            os.close(ours)

    def test_ctrl_c_stops_the_answer_and_ctrl_d_the_program(self, terminal):
        terminal.until(PROMPT)
        terminal.type("hello\r")
        terminal.until(f"Assistant: {RECITAL}")
        terminal.type("\x03")
        terminal.until(PROMPT)
        terminal.type("/set max_tokens=5\r")
        terminal.until("max_tokens=5")
        terminal.until(PROMPT)
        terminal.type("once more\r")
        terminal.until("Assistant: abcd")
        terminal.until(PROMPT)
        terminal.type("\x04")
        assert terminal.process.wait(20) == 0
        assert "Traceback" not in terminal.seen

    def test_thoughts_are_dim_and_ctrl_c_stops_them(self, reciter, tmp_path):
        """It recites after the mark of its thoughts, which never end."""
        folder = Path(shutil.copytree(reciter, tmp_path / "thinker"))
        path = folder / "params" / "mlc-chat-config.json"
        config, template = json.loads(path.read_text(encoding="utf-8")), load_template("rwkv_g1").to_dict()
        template["think"] |= {"begin": "<k", "end": "zz", "modes": {"on": {"opening": " <k"}}, "default": "on"}
        path.write_text(json.dumps(config | {"conv_template": template}), encoding="utf-8")
        with self.chat_of(folder) as terminal:
            terminal.until(PROMPT)
            terminal.type("hello\r")
            terminal.until("Assistant: \x1b[2m<k\r\n\x1b[22m\x1b[2ml\x1b[22m\x1b[2mm\x1b[22m")
            terminal.until("\x1b[2mx\x1b[22m")
            terminal.type("\x03")
            terminal.until(PROMPT)
            terminal.type("/set max_tokens=3\r")
            terminal.until(PROMPT)
            terminal.type("/retry\r")
            terminal.until("\x1b[2mn\x1b[22m\r\nThe 3 tokens were thoughts alone; /set max_tokens=12 allows more.")
            terminal.until(PROMPT)
            terminal.type("\x04")
            assert terminal.process.wait(20) == 0
            assert "Traceback" not in terminal.seen

    def test_ctrl_c_at_the_prompt_drops_the_line(self, terminal):
        terminal.until(PROMPT)
        terminal.type("nonsense\x03")
        terminal.until(PROMPT)
        terminal.type("/exit\r")
        assert terminal.process.wait(20) == 0
        assert "Assistant: " not in terminal.seen

    def test_escape_enter_begins_a_line(self, terminal):
        terminal.until(PROMPT)
        terminal.type("/set max_tokens=5\r")
        terminal.until("max_tokens=5")
        terminal.until(PROMPT)
        terminal.type("one\x1b\rtwo\r")
        terminal.until("Assistant: abcd")
        terminal.until(PROMPT)
        terminal.type("\x04")
        assert terminal.process.wait(20) == 0


class Terminal:
    """The user's side of a pseudo-terminal."""

    def __init__(self, descriptor: int, process: subprocess.Popen):
        self.descriptor, self.process, self.seen, self._fresh = descriptor, process, "", ""

    def type(self, keys: str) -> None:
        os.write(self.descriptor, keys.encode("utf-8"))

    def until(self, text: str) -> None:
        """Read until ``text`` appears after what earlier calls waited for."""
        deadline = time.monotonic() + 60
        while text not in self._fresh:
            assert time.monotonic() < deadline, f"{text!r} never came: {self._fresh[-2000:]!r}"
            if select.select([self.descriptor], [], [], 0.2)[0]:
                data = os.read(self.descriptor, 1 << 16).decode("utf-8", "replace")
                self.seen += data
                self._fresh += data
        self._fresh = self._fresh.partition(text)[2]


def _take_terminal() -> None:
    """Make stdin the controlling terminal, from which Ctrl-C comes as a signal."""
    import fcntl
    import termios

    signal.signal(signal.SIGINT, signal.default_int_handler)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_a_model_is_named_as_for_mlc_chat_cli(monkeypatch, capsys, reciter, tmp_path):
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / reciter.name).symlink_to(reciter)
    monkeypatch.chdir(tmp_path)
    library = next(reciter.glob("*-llvm.so"))
    flags = ["--model", reciter.name, "--model-lib-path", library, "--temperature", "0", "--max-tokens", "4"]
    out, err = chat(monkeypatch, capsys, "hello\n", *flags)
    assert (out, err) == (["Assistant: abc"], "")


def test_speeds_in_place_of_a_chat(capsys, reciter, monkeypatch):
    functions: list[tuple[str, int]] = []
    call = Runner.call
    monkeypatch.setattr(
        Runner,
        "call",
        lambda self, name, given, *where: functions.append((name, len(given[0]))) or call(self, name, given, *where),
    )
    flags = ["--evaluate", "--eval-prompt-len", "64", "--eval-gen-len", "3", "--device", "cpu"]
    assert main(["chat", "--model", str(reciter), *flags]) == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(r"prefill: \d+\.\d tok/s, decode: \d+\.\d tok/s\n", out) and err == ""
    assert functions == [("prefill", 64), ("decode", 1), ("prefill", 64), *[("decode", 1)] * 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give the artifact's folder, or its name with --model NAME; neither was given."),
        (["DIST", "--model", "x"], "Give the artifact's folder, or its name with --model NAME; both were given."),
        (
            ["--model", "nothing"],
            "possible paths: nothing, dist/prebuilt/nothing, dist/nothing/params, dist/prebuilt/mlc-",
        ),
        (["DIST", "--model-lib-path", "none.so"], "`model_lib_path` you passed in is not a file: none.so"),
    ],
)
def test_models_that_cannot_be_named_so(capsys, reciter, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["chat", *(str(reciter) if word == "DIST" else word for word in arguments)]) == 2
    assert message in capsys.readouterr().err

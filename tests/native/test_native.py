"""A packaged model writes what the Python engine writes, and says in a sentence what is wrong with what it is given."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from rwkv_mlc import Chat, UserError
from rwkv_mlc.packaging import SYSTEMS, package
from rwkv_mlc.packaging.runner import FLAGS, include, runner, runtime
from rwkv_mlc.packaging.zig import zig
from support.accuracy import PROMPTS
from support.paths import ROOT

VILLAGE, OTHERS = "rwkv-7-village", ("rwkv-4-village", "rwkv-5-village", "rwkv-7-reverser")
QUESTIONS = ("Who lives in the red house?", "And what does he like to eat?", "Tell me a story.")


@pytest.fixture(scope="module")
def village(programs, levels):
    """With the code for the best and the oldest of this machine's kinds of CPU."""
    return programs(VILLAGE, levels[:: max(len(levels) - 1, 1)])


@pytest.fixture(scope="module")
def thinker(programs):
    return programs("rwkv-7-reverser", template="rwkv_g1")


@pytest.mark.parametrize("name", OTHERS)
def test_greedy_text_is_pythons(programs, thinker, name: str):
    program = thinker if thinker.path.name == name else programs(name)
    for prompt in (*PROMPTS, "reverse 31415926: "):
        expected = program.engine.generate(prompt, temperature=0, max_tokens=48).text
        assert program("--prompt", prompt, "--temperature", "0", "--max-tokens", "48") == expected + "\n"


def test_every_level_writes_pythons_text(village, levels):
    for prompt in (*PROMPTS, "\udcff\udcf0 £ 好 <think>"):
        expected = village.engine.generate(prompt, temperature=0, max_tokens=48).text
        for level in {levels[0], levels[-1]}:
            found = village("--prompt", prompt, "--temperature", "0", "--max-tokens", "48", level=level)
            assert found == expected + "\n", level


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0, "top_p": 1.0, "seed": 0},
        {"temperature": 1.3, "top_p": 0.7, "top_k": 12, "seed": 2**64 - 1},
        {
            "temperature": 0.9,
            "top_p": 0.9,
            "presence_penalty": 0.4,
            "frequency_penalty": 0.3,
            "repetition_penalty": 1.2,
            "penalty_decay": 0.9,
            "seed": 7,
        },
    ],
)
def test_sampled_text_is_pythons(village, settings: dict):
    flags = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    for prompt in ("Once upon a time", ""):
        expected = village.engine.generate(prompt, max_tokens=60, stop=("house",), **settings).text
        assert village("--prompt", prompt, "--max-tokens", "60", "--stop", "h\\x6fuse", *flags) == expected + "\n"


def test_a_conversation_is_pythons(village, tmp_path: Path):
    chat = Chat(village.engine, village.engine.chat_params(temperature=0.8, seed=5))
    asked = (lambda: chat.send(QUESTIONS[0]), lambda: chat.send(QUESTIONS[1]), chat.retry)
    lines = [f"Assistant: {''.join(chat.displayed(ask()))}" for ask in asked]
    chat.save(tmp_path / "python")
    typed = f"{QUESTIONS[0]}\n{QUESTIONS[1]}\n/retry\n/save {tmp_path / 'native'}\n"
    printed = village("--temperature", "0.8", "--seed", "5", text=typed)
    assert printed.splitlines() == [*lines, f"Saved the conversation to {tmp_path / 'native'}"]
    goes_on = village("--state", str(tmp_path / "python"), "--temperature", "0.8", "--seed", "5", text=QUESTIONS[2])
    assert goes_on == f"Assistant: {''.join(chat.displayed(chat.send(QUESTIONS[2])))}\n"


@pytest.mark.parametrize("mode", ["off", "on", "a lot"])
def test_thoughts_are_pythons(thinker, mode: str):
    """Of a model that was never taught to think; what it says is as long as it may be."""
    chat = Chat(
        thinker.engine, thinker.engine.chat_params(temperature=1.0, top_p=0.9, seed=1, max_tokens=24), think=mode
    )
    lines = ["Assistant: " + "".join(chat.displayed(chat.send(message))) + "\n" for message in ("12345", "67")]
    flags = ["--temperature", "1", "--top-p", "0.9", "--seed", "1", "--max-tokens", "24", "--think", mode]
    assert thinker(*flags, text="12345\n67\n") == "".join(lines)


@pytest.mark.parametrize("settings", [{"max_tokens": 9}, {"max_tokens": 60, "stop": ("house", "\n\n")}])
def test_states_are_the_other_sides_too(village, tmp_path: Path, settings: dict):
    engine, ours, theirs = village.engine, tmp_path / "python", tmp_path / "native"
    prompt, params = "Tom lives in the", {"temperature": 0.7, "presence_penalty": 0.5, "seed": 3, **settings}
    state = engine.new_state()
    engine.generate(prompt, state=state, **params)
    engine.save_state(state, ours)
    flags = [
        "--temperature",
        "0.7",
        "--presence-penalty",
        "0.5",
        "--seed",
        "3",
        "--max-tokens",
        str(params["max_tokens"]),
    ]
    stops = [word for stop in params.get("stop", ()) for word in ("--stop", stop.replace("\n", "\\n"))]
    village("--prompt", prompt, *flags, *stops, "--save-state", str(theirs))
    length = int.from_bytes(ours.read_bytes()[:8], "little") + 8
    assert theirs.read_bytes()[:length] == ours.read_bytes()[:length]  # names, shapes, places, tokens
    loaded = engine.load_state(theirs)
    for found, expected in zip(loaded.arrays(), state.arrays(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(abs(expected).max(), 1e-3))
    assert loaded.last[0].counts.ids.tolist() == state.last[0].counts.ids.tolist()
    np.testing.assert_array_equal(loaded.last[0].counts.counts, state.last[0].counts.counts)
    expected = engine.generate("", state=state, **params).text
    assert village("--prompt", "", "--state", str(ours), *flags, *stops) == expected + "\n"


def test_vectors(village, tmp_path: Path):
    """Random numbers, streams, thoughts and templates, as docs/generation.md has them."""
    system = SYSTEMS["linux-x86_64"]
    parts = shutil.copy(runner().build(system), tmp_path / "parts.a")
    zig("ar", "d", parts, "main.o")
    source, folder = Path(__file__).with_name("vectors.cc"), ROOT / "rwkv_mlc" / "native" / "runner"
    paths = [f"-I{path}" for path in (folder, *include())]
    linked = "-static", source, parts, runtime().build(system), "-o", tmp_path / "vectors"
    zig("c++", "-target", system.zig, *FLAGS, *paths, *linked)
    vectors = json.loads((ROOT / "tests" / "engine" / "generation_vectors.json").read_text(encoding="utf-8"))
    names = [case["name"] for case in vectors["templates"]]
    templates = ROOT / "configs" / "templates"
    conversations = {name: json.loads((templates / f"{name}.json").read_text(encoding="utf-8")) for name in names}
    given = json.dumps({**vectors, "conversations": conversations}).encode()
    checked = subprocess.run([tmp_path / "vectors"], input=given, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stdout.decode()
    assert int(checked.stdout.split()[0]) > 150


def test_what_is_wrong_is_said_in_a_sentence(village, tmp_path: Path):
    assert village("--promt", "x", code=2) == "There is no --promt; --help lists the flags.\n"
    assert "top_p must be from 0 to 1" in village("--prompt", "x", "--top-p", "2", code=2)
    assert "has no think mode" in village("--prompt", "x", "--chat", "--think", "on", code=2)
    assert "RWKV_MLC_CPU is z80" in village("--prompt", "x", level="z80", code=2)
    assert "cannot be read" in village("--prompt", "x", "--state", str(tmp_path / "none"), code=2)
    (tmp_path / "state").write_bytes(b"\xff" * 64)
    assert "ends too early" in village("--prompt", "x", "--state", str(tmp_path / "state"), code=2)
    assert "MIT" in village("--licenses") and "Apache License" in village("--licenses")


def test_a_program_that_was_cut_says_so(village, programs, tmp_path: Path):
    whole = village.path.read_bytes()
    cut = shutil.copy(village.path, tmp_path / "cut")
    with open(cut, "r+b") as file:
        file.truncate(len(whole) - 1000)
    said = subprocess.run([cut, "--prompt", "x"], capture_output=True, text=True)
    assert said.returncode == 2 and "The weights are missing" in said.stderr and said.stderr.count("\n") == 1
    start = int.from_bytes(whole[-24:-16], "little")
    beside = tmp_path / "cut.weights"
    beside.write_bytes(whole[-start:])
    found = subprocess.run(
        [cut, "--prompt", "Tom", "--temperature", "0", "--max-tokens", "8"], capture_output=True, text=True
    )
    assert found.stdout == village("--prompt", "Tom", "--temperature", "0", "--max-tokens", "8")
    shutil.copy(programs(OTHERS[0]).path, beside)
    said = subprocess.run([cut, "--prompt", "x"], capture_output=True, text=True)
    assert said.returncode == 2 and "belongs to another program" in said.stderr


def test_what_cannot_be_packaged(village, tmp_path: Path):
    with pytest.raises(UserError, match="There is no system windows; a model is packaged for linux-x86_64"):
        package(village.dist, "windows", tmp_path / "out")
    with pytest.raises(UserError, match="has no level z80"):
        package(village.dist, "linux-x86_64", tmp_path / "out", levels=["z80"])
    assert list(tmp_path.iterdir()) == []

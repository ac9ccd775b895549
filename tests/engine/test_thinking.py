"""Think mode: thoughts are told from the answer, and later turns do not hold them."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from rwkv_mlc import Chat, Engine, Thought, UserError
from rwkv_mlc.engine.choice import Chooser
from rwkv_mlc.engine.engine import Answer
from rwkv_mlc.engine.sequence import Sequence
from rwkv_mlc.engine.state import State
from rwkv_mlc.engine.templates import load_template
from rwkv_mlc.engine.thoughts import ThoughtStream
from rwkv_mlc.engine.tools import ToolCall
from rwkv_mlc.tokenizer import load_tokenizer
from support.paths import ROOT

VECTORS = json.loads((Path(__file__).parent / "generation_vectors.json").read_text(encoding="utf-8"))["thoughts"]
MODES = {"off": "", "on": "", "a bit": " (think a bit)", "a lot": " (think a lot)"}
SAID = "Tom eats fish.\n\nAnd cake."
LONG = "Tom and Mia went to the market, and one of them had fish for lunch. Who eats?"
THOUGHT = "Who eats?\n\nTom </thin> does."


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: repr("".join([case["opening"], *case["chunks"]])))
def test_vectors(case):
    tags = load_template("rwkv_g1").think
    stream = ThoughtStream(tags, case["opening"])
    for chunk, expected in zip(case["chunks"], case["pushed"], strict=True):
        assert [[type(piece) is Thought, piece] for piece in stream.push(chunk)] == expected
    assert [[type(piece) is Thought, piece] for piece in stream.finish()] == case["finished"]
    chars = ThoughtStream(tags, case["opening"])  # however the text is cut
    found = [piece for char in "".join(case["chunks"]) for piece in chars.push(char)] + chars.finish()
    together = [piece for pushed in (*case["pushed"], case["finished"]) for piece in pushed]
    for kind in (True, False):
        whole = "".join(text for is_thought, text in together if is_thought == kind)
        assert "".join(piece for piece in found if (type(piece) is Thought) == kind) == whole


@pytest.fixture
def thinking(engine, monkeypatch) -> Callable[[str], None]:
    """Gives the demo model G1's template, and then a text to write, whatever its logits are."""
    monkeypatch.setattr(engine, "template", load_template("rwkv_g1"))

    def write(text: str) -> None:
        tokens = iter([*engine.tokenizer.encode(text), 0])
        monkeypatch.setattr(engine, "choose", lambda samplers, logits: [next(tokens)])

    return write


def state_after(engine: Engine, *parts: str) -> State:
    """Of a model that reads these, each encoded by itself."""
    state = engine.new_state()
    for part in parts:
        engine.prefill(engine.tokenizer.encode(part), state)
    return state


def assert_same(found: State, expected: State) -> None:
    """But for rounding, in the state and in the logits after it."""
    pairs = list(zip(found.arrays(), expected.arrays(), strict=True))
    pairs.append((found.last[0].logits.array(), expected.last[0].logits.array()))
    for array, other in pairs:
        np.testing.assert_allclose(array, other, rtol=0, atol=1e-5 * max(abs(other).max(), 1e-3))


def listen(engine: Engine, monkeypatch) -> list[int]:
    """Every token that the library reads from here on."""
    tokens: list[int] = []
    call = engine.runner.call

    def listening(function, sequences, *where):
        tokens.extend(sequences[0])
        return call(function, sequences, *where)

    monkeypatch.setattr(engine.runner, "call", listening)
    return tokens


@pytest.mark.parametrize("mode", MODES)
def test_later_turns_hold_no_thoughts(engine, thinking, monkeypatch, mode):
    """Token for token: what the state has read is the message and the answer, as if there had been neither thoughts nor a
    request for them."""
    chat = Chat(engine, think=mode)
    thinking(f">\n{SAID}" if mode == "off" else f">\n{THOUGHT}\n</think>\n\n{SAID}")
    with monkeypatch.context() as patch:
        read = listen(engine, patch)
        pieces = list(chat.send("Who\n\neats? "))
    assert "".join(piece for piece in pieces if type(piece) is str) == chat.answer.text == SAID
    thoughts = "" if mode == "off" else THOUGHT
    assert "".join(piece for piece in pieces if type(piece) is Thought) == chat.answer.reasoning == thoughts
    assert chat.answer.finish_reason == "stop" and not chat.answer.counts.ids.size
    encode, turn, told = engine.tokenizer.encode, "User: Who\neats?\n\nAssistant:", f" {SAID}\n\n"
    opening = " <think></think" if mode == "off" else " <think"
    assert engine.tokenizer.decode(read).startswith(f"User: Who\neats?{MODES[mode]}\n\nAssistant:{opening}>\n")
    assert_same(chat.state, state_after(engine, turn, told))
    # From the token at which the prompt differs from that of later turns, they are read anew.
    prompt = encode(f"User: Who\neats?{MODES[mode]}\n\nAssistant:{opening}")
    later = encode(turn)
    shared = max(n for n in range(len(later) + 1) if later[:n] == prompt[:n])
    again = [*later[shared:], *encode(told)]
    assert read[-len(again) :] == again and len(read) == len(prompt) + len(chat.answer.tokens) - 1 + len(again)
    chat.think = "off"
    thinking(">\nYes.")
    assert "".join(chat.send("And?")) == "Yes."
    assert_same(chat.state, state_after(engine, turn, told, "User: And?\n\nAssistant:", " Yes.\n\n"))


@pytest.mark.parametrize("count", [1, 4, 30])
def test_an_answer_that_is_left_amid_thoughts(engine, thinking, count):
    """It says nothing, and the conversation goes on."""
    chat = Chat(engine, think="on")
    thinking(f">\n{THOUGHT * 9}</think>\n{SAID}")
    pieces = chat.send("Who eats?")
    assert all(type(next(pieces)) is Thought for _ in range(count))
    pieces.close()
    assert chat.answer.text == "" and (THOUGHT * 9).startswith(chat.answer.reasoning) and chat.answer.reasoning
    assert_same(chat.state, state_after(engine, "User: Who eats?\n\nAssistant:", "\n\n"))


def test_an_answer_that_ends_by_length_amid_thoughts(engine, thinking):
    chat = Chat(engine, dataclasses.replace(engine.chat_params(), max_tokens=5), think="on")
    thinking(f">\n{THOUGHT}</think>\n{SAID}")
    assert all(type(piece) is Thought for piece in chat.send("Who eats?"))
    assert (chat.answer.text, chat.answer.finish_reason) == ("", "length")
    assert_same(chat.state, state_after(engine, "User: Who eats?\n\nAssistant:", "\n\n"))


@pytest.mark.parametrize("stop", ["\n\nUser:", "\n\nSystem:", "\n\nAssistant:"])
def test_turns_that_a_model_writes_itself_end_the_answer(engine, thinking, stop):
    chat = Chat(engine, think="on")
    thinking(f">\n{THOUGHT}</think>\n{SAID}{stop} What?")
    assert "".join(piece for piece in chat.send("Who eats?") if type(piece) is str) == SAID
    assert_same(chat.state, state_after(engine, "User: Who eats?\n\nAssistant:", f" {SAID}\n\n"))


def test_a_message_that_cannot_be_read_was_never_sent(engine, thinking, monkeypatch):
    chat = Chat(engine, think="on")
    thinking(">a</think>b")
    read = Engine.read

    def fail(self, sequence, state):
        read(self, sequence, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Engine, "read", fail)
        next(chat.send("Lost"))
    assert "".join(chat.send("Hi")) == "ab"
    assert_same(chat.state, state_after(engine, "User: Hi\n\nAssistant:", " b\n\n"))


def test_thoughts_are_no_part_of_a_saved_conversation(engine, thinking, tmp_path):
    chat = Chat(engine, think="a lot")
    thinking(f">{THOUGHT}</think>{SAID}")
    list(chat.send("Who eats?"))
    chat.save(tmp_path / "a.state")
    assert_same(
        engine.load_state(tmp_path / "a.state"), state_after(engine, "User: Who eats?\n\nAssistant:", f" {SAID}\n\n")
    )
    assert_same(chat.answer.state, chat.state)


def test_what_is_displayed(engine, thinking):
    chat = Chat(engine, think="on")
    thinking(f">\n{THOUGHT}\n</think>\n{SAID}")
    pieces = list(chat.displayed(chat.send("Who eats?")))
    assert "".join(pieces) == f"<think>\n{THOUGHT}\n</think>\n{SAID}"
    assert "".join(piece for piece in pieces if type(piece) is not Thought) == SAID


def test_texts_that_are_no_chat_are_whole(engine, thinking):
    thinking(">a</think>b")
    answer = engine.generate("Assistant: <think")
    assert isinstance(answer, Answer) and (answer.text, answer.reasoning) == (">a</think>b", "")


@pytest.mark.parametrize("think", ["on", "off", "a bit"])
def test_a_model_that_does_not_think(engine, think):
    with pytest.raises(UserError, match="The model's template, rwkv_world, has no think mode"):
        Chat(engine, think=think)
    chat = Chat(engine)
    with pytest.raises(UserError, match="no think mode"):
        chat.think = think
    assert chat.think is None


def test_tools(engine, thinking):
    """Offered in the system text, called in JSON, answered as the user."""
    weather = {"name": "weather", "parameters": {"town": "string"}}
    chat = Chat(engine, tools=[weather])
    system = f"System: Tools:\n{json.dumps([weather])}\nReturn only a JSON function call.\n\n"
    assert_same(chat.state, state_after(engine, system))
    call = '```json\n{"name": "weather", "arguments": {"town": "Bath"}}\n```'
    thinking(f">\n{call}")
    list(chat.send("Is it warm?"))
    assert chat.calls == [ToolCall("weather", {"town": "Bath"})]
    turns = (system, "User: Is it warm?\n\nAssistant:", f" {call}\n\n")
    assert_same(chat.state, state_after(engine, *turns))
    thinking(">\nYes.")
    list(chat.send_result({"celsius": 30}))
    assert (chat.answer.text, chat.calls) == ("Yes.", [])
    result = 'User: Function output:\n{"celsius": 30}\n\nAssistant:'
    assert_same(chat.state, state_after(engine, *turns, result, " Yes.\n\n"))


def test_the_page_on_tools_does_what_it_says(demo, tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "generation.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (name,) = re.findall(r'Engine\("(.*)"\)', program)
    folder = Path(shutil.copytree(demo, tmp_path / name))
    path = folder / "params" / "mlc-chat-config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"conv_template": load_template("rwkv_g1").to_dict()}
    path.write_text(json.dumps(config), encoding="utf-8")
    call = '```json\n{"name": "clock", "arguments": {"town": "Bath"}}\n```'
    texts = [f">\nI need a clock.\n</think>\n{call}", ">\nNow I know.\n</think>\nHalf past twelve."]
    encode = load_tokenizer([folder / "params" / "rwkv_vocab.txt"]).encode
    tokens = iter([token for text in texts for token in [*encode(text), 0]])
    monkeypatch.setattr(Chooser, "__call__", lambda self, samplers, logits: [next(tokens)])
    monkeypatch.chdir(tmp_path)
    exec(program, names := {})
    printed = capsys.readouterr().out.replace(")(", "")
    assert (
        printed == (f"(I need a clock.){call}(Now I know.)Half past twelve.\nIt thought of this: Now I know.\n")
        and names["chat"].calls == []
    )
    results = "User: Function output:\nIt is half past twelve in Bath.\n\nAssistant:", " Half past twelve.\n\n"
    turns = names["engine"].template.system_prompt(names["tools"]), "User: What time is it in Bath?\n\nAssistant:"
    assert_same(names["chat"].state, state_after(names["engine"], *turns, f" {call}\n\n", *results))


def test_an_answer_that_has_to_be_a_call(engine, thinking):
    chat = Chat(engine, think="on", tools=[{"name": "f"}])
    call = '{"name": "f", "arguments": {"a": 1}}'
    thinking(f"\n{call}\n```")
    pieces = list(chat.send("Do it.", call=True))
    assert "".join(pieces) == f"\n{call}\n```" and not any(type(piece) is Thought for piece in pieces)
    assert chat.calls == [ToolCall("f", {"a": 1})]
    system = engine.template.system_prompt([{"name": "f"}])
    assert_same(chat.state, state_after(engine, system, "User: Do it.\n\nAssistant: ```json", f"\n{call}\n```\n\n"))
    thinking(">a</think>b")
    assert "".join(chat.send("And?")) == "ab" and chat.calls == []


def test_calls_need_a_template_with_tools(engine):
    for send in (lambda chat: next(chat.send("Do it.", call=True)), lambda chat: chat.send_result(1)):
        with pytest.raises(UserError, match="rwkv_world, has no form for tools"):
            send(Chat(engine))
    assert Chat(engine).calls == []


@pytest.mark.parametrize(
    ("said", "calls"),
    [
        ('```json\n{"name": "f", "arguments": {}}', [ToolCall("f", {})]),
        ('So:\n```json{"name": "f", "arguments": {"a": [1]}}``` and ```json {"name": "g", "arguments": {}} ```', 2),
        ('```json\n{"name": "f"}\n```', []),
        ('```json\n{"name": "f", "arguments": "x"}\n```', []),
        ("```json\n[1, 2]\n```", []),
        ('```python\n{"name": "f", "arguments": {}}\n```', []),
        ("```json\n{broken", []),
    ],
)
def test_which_answers_are_calls(engine, thinking, said, calls):
    chat = Chat(engine)
    thinking(f">\n{said}")
    assert chat.calls == []
    list(chat.send("Call."))
    assert chat.calls == calls if isinstance(calls, list) else len(chat.calls) == calls


@pytest.fixture
def writing(thinking, engine, monkeypatch) -> Callable[[Sequence, str], None]:
    """Gives each of several sequences a text to write."""
    texts: dict[object, Iterator[int]] = {}
    monkeypatch.setattr(engine, "choose", lambda samplers, logits: [next(texts[sampler]) for sampler in samplers])

    def write(sequence: Sequence, text: str) -> None:
        texts[sequence.sampler] = iter([*engine.tokenizer.encode(text), 0])

    return write


def test_thoughts_of_many_at_once(engine, writing, monkeypatch):
    """Turns beside each other are what each is in a chat, for two turns; of one without a slot nothing is kept."""
    scheduler = engine.scheduler(4)
    pool, prompts = scheduler.pool, [LONG, "Who eats?", "Who eats?"]
    slots = [pool.allocate() for _ in range(3)]
    told: list[list[str]] = [[], [], []]
    for said in (SAID, "Yes."):
        heard: dict[Sequence, list[str]] = {}
        turns = [engine.turn(text, think=mode) for text, mode in zip(prompts, ("on", "a lot", "off"), strict=True)]
        for turn, slot in zip(turns, slots, strict=True):
            writing(turn, f">\n{SAID}" if turn is turns[2] else f">\n{THOUGHT}</think>\n{said}")
            scheduler.add(turn, slot)
        scheduler.add(alone := engine.turn("Hi", think="on", max_tokens=3))
        writing(alone, f">{THOUGHT}")
        while scheduler.sequences:
            for turn, piece in scheduler.step():
                heard.setdefault(turn, []).append(piece)
        assert (alone.text, alone.reasoning, alone.finish_reason) == ("", THOUGHT[: len(alone.reasoning)], "length")
        for number, turn in enumerate(turns):
            text = SAID if number == 2 else said
            assert (turn.text, turn.reasoning, turn.finish_reason) == (text, "" if number == 2 else THOUGHT, "stop")
            assert "".join(piece for piece in heard[turn] if type(piece) is Thought) == turn.reasoning
            assert "".join(piece for piece in heard[turn] if type(piece) is str) == turn.text
            told[number] += [f"User: {prompts[number]}\n\nAssistant:", f" {text}\n\n"]
            assert_same(pool.save(slots[number]), state_after(engine, *told[number]))
    assert pool.free_slots == 1


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 6])
def test_turns_that_are_closed_early(engine, writing, monkeypatch, steps):
    """While the message is read, before the prompt's end, and amid the thoughts."""
    monkeypatch.setattr(engine, "prefill_chunk", 16)
    scheduler = engine.scheduler(1)
    slot, turn = scheduler.pool.allocate(), engine.turn("Who eats? " * 3, think="a lot")
    writing(turn, f">{THOUGHT}")
    scheduler.add(turn, slot)
    for _ in range(steps):
        scheduler.step()
    scheduler.close(turn)
    while scheduler.sequences:
        scheduler.step()
    assert turn.text == "" and turn.finish_reason is None
    told = "User: " + ("Who eats? " * 3).strip() + "\n\nAssistant:"
    assert_same(scheduler.pool.save(slot), state_after(engine, told, "\n\n"))


def test_prompts_are_read_whole_where_nobody_goes_on(engine, writing, monkeypatch):
    lengths: list[int] = []
    call = engine.runner.call
    monkeypatch.setattr(
        engine.runner, "call", lambda f, parts, *rest: lengths.append(len(parts[0])) or call(f, parts, *rest)
    )
    scheduler, turn = engine.scheduler(1), engine.turn(LONG, think="a bit")
    writing(turn, ">")
    scheduler.add(turn)
    while scheduler.sequences:
        scheduler.step()
    assert lengths == [len(turn.prompt), 1] and turn.text == turn.reasoning == ""


def test_settings_of_a_turn(engine, thinking):
    turn = engine.turn("Hi", temperature=0)
    assert turn.params == engine.chat_params(temperature=0) and turn.params.stop == engine.template.stop_str
    assert engine.tokenizer.decode(turn.prompt) == "User: Hi\n\nAssistant: <think></think"
    assert engine.turn("Hi", stop=("END",)).params.stop == (*engine.template.stop_str, "END")
    params = engine.chat_params(stop=("x",), seed=3)
    assert engine.turn("Hi", params, max_tokens=5).params == dataclasses.replace(params, max_tokens=5)
    with pytest.raises(UserError, match="think must be one of"):
        engine.turn("Hi", think="much")

"""A state has read exactly what was shown: the prompt and the text of the answer, in memory and in files."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from rwkv_mlc import Chat, Engine, UserError
from rwkv_mlc.engine.state import State
from rwkv_mlc.engine.state_pool import StatePool

QUESTION = "User: Who lives in the red house?\n\nAssistant:"
LONG = 60


def assert_same(found: State, expected: State) -> None:
    """But for rounding, in the state and in the logits after it."""
    pairs = list(zip(found.arrays(), expected.arrays(), strict=True))
    pairs.append((found.last[0].logits.array(), expected.last[0].logits.array()))
    for array, other in pairs:
        np.testing.assert_allclose(array, other, rtol=0, atol=1e-5 * max(abs(other).max(), 1e-3))


def state_after(engine: Engine, *parts: str | bytes | list[int]) -> State:
    """Of a model that reads these, each encoded by itself."""
    state = engine.new_state()
    for part in parts:
        tokens = part if isinstance(part, list) else engine.tokenizer.encode(part)
        if tokens:
            engine.prefill(tokens, state)
    return state


def shown(engine: Engine, tokens: list[int], text: bytes) -> tuple[list[int], bytes]:
    """The tokens that the text holds whole, and what it has of the next."""
    count = max(n for n in range(len(tokens) + 1) if text.startswith(engine.tokenizer.decode_bytes(tokens[:n])))
    return tokens[:count], text[len(engine.tokenizer.decode_bytes(tokens[:count])) :]


def test_the_same_state_is_the_same_bytes(engine, tmp_path):
    state = state_after(engine, QUESTION)
    for i in range(8):
        engine.save_state(state, tmp_path / str(i))
    first, *others = [(tmp_path / str(i)).read_bytes() for i in range(8)]
    assert all(other == first for other in others)
    assert first.index(b'"format"') < first.index(b'"model"') < first.index(b'"name"') < first.index(b'"quantization"')
    assert_same(engine.load_state(tmp_path / "0"), state)


def test_a_state_knows_how_many_tokens_it_has_read(engine, tmp_path):
    prompt = engine.tokenizer.encode(QUESTION)
    state = state_after(engine, QUESTION)
    answer = engine.generate([5, 6], temperature=0, max_tokens=4, state=state)
    assert state.lengths == state.copy().lengths == state.copy_of_slot(0).lengths == {0: len(prompt) + 2 + 4}
    engine.save_state(answer.state, tmp_path / "a")
    assert engine.load_state(tmp_path / "a").lengths == state.lengths
    chat = Chat(engine, dataclasses.replace(engine.chat_params(), temperature=0.0))
    system = chat.length
    text = "".join(chat.send("Hello!"))
    assert chat.length == len(engine.tokenizer.encode(f"{engine.template.user_turn('Hello!')}{text}\n\n")) + system
    pool = StatePool.of_slots(engine.runner, 2)
    slot = pool.load(state)
    assert pool.state.lengths == {slot: state.lengths[0]} and pool.save(slot).lengths == state.lengths
    pool.free(slot)
    assert pool.state.lengths == {}


@pytest.mark.parametrize("tokens", ["many", "-", "1.5", "\u0661"])
def test_a_length_that_cannot_be(engine, tmp_path, tokens):
    path = tmp_path / "a"
    engine.save_state(state_after(engine, QUESTION), path)
    with safe_open(path, "np") as file:
        metadata, arrays = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(arrays, path, metadata | {"tokens": tokens})
    with pytest.raises(UserError, match="does not say how many tokens it has read; it is damaged"):
        engine.load_state(path)
    del metadata["tokens"]
    save_file(arrays, path, metadata)
    assert engine.load_state(path).lengths == {0: 0}


@pytest.mark.parametrize("seed", range(40))
def test_stop_strings_anywhere(engine, seed):
    """One that was met, with others of which only the beginning comes; they begin and end within tokens."""
    draw = random.Random(seed)
    whole = engine.generate(QUESTION, temperature=0, max_tokens=LONG)
    text = whole.text
    at = draw.randrange(len(text) - 1)
    stops = [text[at : at + draw.choice([1, 2, 5, 12])]]
    for _ in range(draw.choice([0, 1, 3])):
        start = draw.randrange(len(text))
        stops.append(text[start : start + draw.randint(1, 9)] + "#")
    state = engine.new_state()
    answer = engine.generate(QUESTION, temperature=0, max_tokens=LONG, stop=stops, state=state)
    assert answer.finish_reason == "stop" and text.startswith(answer.text)
    tokens, rest = shown(engine, answer.tokens, answer.text.encode())
    expected = state_after(engine, QUESTION, tokens, rest)
    assert_same(state, expected)
    assert answer.state is state and answer.fed == tokens
    assert set(state.last[0].counts.ids) == set(tokens)
    free = {"temperature": 0, "max_tokens": 8, "presence_penalty": 0, "frequency_penalty": 0}
    assert engine.generate("", state=state, **free).tokens == engine.generate("", state=expected, **free).tokens


@pytest.mark.parametrize("count", [1, 2, 9])
def test_going_on_is_one_long_answer(engine, tmp_path, count):
    """Token for token, with the penalties of the model's own settings, whole and in pieces that go through files."""
    assert engine.defaults.frequency_penalty > 0
    expected = engine.generate(QUESTION, temperature=0, max_tokens=4 * count + 3)
    state, tokens = engine.new_state(), []
    for prompt in (QUESTION, "", "", ""):
        answer = engine.generate(prompt, temperature=0, max_tokens=count, state=state)
        tokens += answer.tokens
        engine.save_state(state, tmp_path / "a.state")
        state = engine.load_state(tmp_path / "a.state")
    tokens += engine.generate(b"", temperature=0, max_tokens=3, state=state).tokens
    assert tokens == expected.tokens


def test_the_end_of_a_text_is_not_read(engine):
    state = engine.new_state()
    prompt = "User: Hello!\n\nAssistant: Hello! How can I help you?\n\n"
    answer = engine.generate(prompt, seed=1, stop=(), max_tokens=5000, state=state)
    assert answer.tokens[-1] == 0
    assert_same(state, state_after(engine, prompt, answer.tokens[:-1]))


def test_a_state_of_nobodys_is_exact_when_it_is_asked_for(engine, monkeypatch):
    """And copied for nobody before."""
    copies: list[int] = []
    monkeypatch.setattr(State, "copy_of_slot", lambda self, slot: copies.append(slot))
    answer = engine.generate(QUESTION, temperature=0, max_tokens=LONG, stop=("red house", "Tom the dog"))
    assert answer.fed != shown(engine, answer.tokens, answer.released)[0] and not copies
    assert_same(answer.state, state_after(engine, QUESTION, *shown(engine, answer.tokens, answer.released)))
    short = engine.generate(QUESTION, temperature=0, max_tokens=3)
    assert short.fed == short.tokens[:2]
    assert_same(short.state, state_after(engine, QUESTION, short.tokens))
    assert short.fed == short.tokens and short.state is short.state


def test_states_are_kept_where_a_stop_string_may_begin(reciting, monkeypatch):
    kept: list[str] = []
    copy, state = State.copy_of_slot, reciting.new_state()
    monkeypatch.setattr(State, "copy_of_slot", lambda s, slot: kept.append("new") or copy(s, slot))
    monkeypatch.setattr(State, "copy_slot", lambda s, slot, *_: kept.append("again"))
    for stop, expected in (((), 0), (("#",), 0), (("z!", "q!"), 2), (("c",), 0)):
        kept.clear()
        reciting.generate("Recite:", temperature=0, max_tokens=29, stop=stop, state=state)
        assert len(kept) == expected


def test_an_answer_that_was_left_before_its_end(reciting):
    state = reciting.new_state()
    answer = reciting.stream("Recite:", temperature=0, stop=("bcd#", "cde#"), max_tokens=40, state=state)
    pieces = iter(answer)
    assert [next(pieces) for _ in range(3)] == [" ", "a", "b"]
    assert reciting.tokenizer.decode(answer.fed) == " abcde"
    answer.settle()
    assert list(answer) == [] and answer.finish_reason is None
    assert_same(state, state_after(reciting, f"Recite:{answer.text}"))


def test_a_slot_of_a_pool(engine):
    """Which the caller keeps; those that the scheduler gives are freed at once."""
    scheduler = engine.scheduler(3)
    kept = scheduler.pool.allocate()
    settings = {"temperature": 0, "max_tokens": 20, "stop": ("red house",)}
    mine, other = engine.sequence(QUESTION, **settings), engine.sequence(QUESTION, **settings)
    scheduler.add(mine, kept)
    scheduler.add(other)
    finished: list[object] = []
    while scheduler.sequences:
        finished += [sequence for sequence, _ in scheduler.step() if sequence.finish_reason]
    assert finished == [mine, other] and mine.text == other.text
    tokens, rest = shown(engine, mine.tokens, mine.released)
    assert_same(scheduler.pool.save(kept), state_after(engine, QUESTION, tokens, rest))
    assert scheduler.pool.free_slots == 2 and other.fed == other.tokens[:-1]


@pytest.mark.parametrize(
    "stop",
    [
        ("red",),
        ("d house",),
        ("\n\nUser",),
        ("\nUser:",),
        ("house.\n\n",),
        (".\n\nUser: And", "\n\n"),
        ("cat lives in the blue", "\n\n"),
    ],
)
def test_a_conversation_has_read_what_was_shown(engine, stop):
    """And what closes it."""
    chat = Chat(engine, engine.chat_params(temperature=0.0, max_tokens=30))
    chat.params = dataclasses.replace(chat.params, stop=stop)
    text = "".join(chat.send("Who lives in the red house?"))
    template = engine.template
    closing = template.after_answer(text.encode()).decode()
    said = template.system_prompt(), template.user_turn("Who lives in the red house?"), text + closing
    assert (text + closing).endswith("\n\n")
    assert_same(chat.state, state_after(engine, *said))


def test_nothing_is_kept_for_what_closes_an_answer_anyway(engine, monkeypatch):
    chat = Chat(engine, engine.chat_params(temperature=0.0))
    monkeypatch.setattr(State, "copy_of_slot", lambda *_: pytest.fail("a state was copied"))
    assert "".join(chat.send("Tell me a story.")).count(" ") > 20
    assert chat.answer.finish_reason == "stop"


def test_files_hold_the_logits(engine, tmp_path):
    path, state = tmp_path / "a.state", engine.new_state()
    logits = engine.prefill(engine.encode(QUESTION), state)
    engine.save_state(state, path)
    with safe_open(path, "numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("logits"), logits)
    engine.decode(5, state)
    after = engine.decode(6, state)
    engine.save_state(state, path)
    np.testing.assert_array_equal(engine.load_state(path).last[0].logits.array(), after)
    (*_, scored) = engine.score([7, 8, 9], state)
    np.testing.assert_array_equal(state.last[0].logits.array(), scored[-1])


def rewrite(path: Path, **changes: np.ndarray | None) -> None:
    with safe_open(path, "numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()} | changes  # noqa: SIM118  it cannot be iterated over
        metadata = file.metadata()
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path, metadata)


def test_files_of_earlier_versions(engine, tmp_path):
    path, state = tmp_path / "a.state", engine.new_state()
    engine.prefill(engine.encode("Tom"), state)
    engine.save_state(state, path)
    nothing = {"counted_ids": np.zeros(0, np.int32), "counts": np.zeros(0, np.float32)}
    rewrite(path, logits=None, **dict.fromkeys(nothing))
    older = engine.load_state(path)
    with pytest.raises(UserError, match="without the logits that an empty prompt goes on from.*; give a prompt"):
        engine.generate("", state=older)
    expected = engine.generate(" the cat", temperature=0, max_tokens=5, state=state)
    assert engine.generate(" the cat", temperature=0, max_tokens=5, state=older).tokens == expected.tokens
    assert engine.generate("", temperature=0, max_tokens=3, state=older).prompt == []
    for logits in (np.zeros(3, np.float32), np.zeros(engine.config.vocab_size)):
        rewrite(path, logits=logits, **nothing)
        with pytest.raises(UserError, match="does not have this model's shapes"):
            engine.load_state(path)


def test_counts_that_cannot_be(engine, tmp_path):
    path, state = tmp_path / "a.state", engine.new_state()
    engine.generate("Tom", temperature=0, max_tokens=9, state=state)
    engine.save_state(state, path)
    counts = engine.load_state(path).last[0].counts
    assert len(counts.ids) > 3 and set(counts.ids) <= set(range(engine.config.vocab_size))
    ids = counts.ids.copy()
    for changed, reason in ((0, "counts tokens"), (-1, "counts tokens"), (768, "counts tokens")):
        ids[:2] = ids[1], changed
        if changed == 0:
            ids[:2] = ids[2]
        rewrite(path, counted_ids=ids)
        with pytest.raises(UserError, match=reason):
            engine.load_state(path)
    rewrite(path, counted_ids=ids[1:])
    with pytest.raises(UserError, match="does not have this model's shapes"):
        engine.load_state(path)


def test_calls_of_the_runner_leave_no_logits_of_before(engine):
    """Nobody kept those of a call that the engine did not make."""
    state = engine.new_state()
    assert engine.generate("", temperature=0, max_tokens=1, state=state).prompt == [0]
    engine.runner.run("decode", [[5]], state)
    with pytest.raises(UserError, match="without the logits"):
        engine.generate("", state=state)
    copied = state.copy()
    engine.prefill([6], state)
    assert state.last[0] is not None and copied.last[0] is None

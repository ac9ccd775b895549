"""Sequences that share calls of the library: each gives what it gives alone, whoever comes, goes or fails beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from rwkv_mlc import UserError
from rwkv_mlc.engine.scheduler import FEW_TOKENS, Scheduler
from rwkv_mlc.engine.sequence import Reading
from rwkv_mlc.engine.state import Logits
from rwkv_mlc.engine.tvm_runtime import CPU, tensor
from support.paths import DEMO

STORY = (DEMO.parent / "heldout.txt").read_text(encoding="utf-8")
CHUNK = 64
QUESTION = "User: Who lives in the red house?\n\nAssistant:"
# The step at which each comes, its prompt, and its settings.
REQUESTS: list[tuple[int, str, dict[str, Any]]] = [
    (0, QUESTION, {"temperature": 0, "max_tokens": 30}),
    (0, STORY[:900], {"seed": 5, "top_p": 0.9, "max_tokens": 25}),
    (0, "", {"seed": 8, "temperature": 2.0, "top_p": 1.0, "max_tokens": 40}),
    (2, "Tom", {"temperature": 0, "stop": ("the",), "max_tokens": 40}),
    (3, STORY[900:3000], {"temperature": 0, "max_tokens": 12}),
    (9, QUESTION, {"seed": 1, "stop": ("\n\n",), "frequency_penalty": 1.0, "max_tokens": 100}),
    (11, STORY[3000:3100], {"seed": 2, "top_k": 3, "max_tokens": 1}),
]


@pytest.fixture(autouse=True)
def small_chunks(engine, monkeypatch) -> None:
    monkeypatch.setattr(engine, "prefill_chunk", CHUNK)


@pytest.fixture
def calls(engine, monkeypatch) -> list[tuple[str, list[int], list[int]]]:
    """The function, the number of ids of each sequence and the slots of every call of the library from here on."""
    calls: list[tuple[str, list[int], list[int]]] = []
    call = engine.runner.call

    def recording(function, sequences, state, slots):
        calls.append((function, [len(tokens) for tokens in sequences], list(slots)))
        return call(function, sequences, state, slots)

    monkeypatch.setattr(engine.runner, "call", recording)
    return calls


def run_all(scheduler: Scheduler) -> dict[Reading, list[str]]:
    """Steps until nothing is left; the pieces of text of each sequence."""
    pieces: dict[Reading, list[str]] = {}
    while scheduler.sequences:
        for sequence, text in scheduler.step():
            pieces.setdefault(sequence, []).append(text)
    return pieces


@pytest.mark.parametrize("slots", [1, 2, 3, 8])
def test_each_gives_what_it_gives_alone(engine, calls, slots):
    alone = [engine.generate(prompt, **settings) for _, prompt, settings in REQUESTS]
    assert len({answer.text for answer in alone}) == len(REQUESTS)
    calls.clear()
    scheduler, sequences = engine.scheduler(slots), []
    pieces: dict[Reading, str] = {}
    step = 0
    while scheduler.sequences or len(sequences) < len(REQUESTS):
        for arrival, prompt, settings in REQUESTS:
            if arrival == step:
                sequences.append(engine.sequence(prompt, **settings))
                scheduler.add(sequences[-1])
        for sequence, text in scheduler.step():
            pieces[sequence] = pieces.get(sequence, "") + text
        assert len(scheduler.running) <= slots
        step += 1
    for sequence, answer in zip(sequences, alone, strict=True):
        assert (sequence.text, sequence.tokens, sequence.fed) == (answer.text, answer.tokens, answer.fed)
        assert (pieces[sequence], sequence.finish_reason) == (answer.text, answer.finish_reason)
    assert scheduler.pool.free_slots == slots
    assert {slot for _, _, used in calls for slot in used} == set(range(min(slots, len(REQUESTS))))


def test_libraries_that_choose_no_tokens_answer_the_same(engine, monkeypatch):
    expected = [engine.generate(prompt, **settings).tokens for _, prompt, settings in REQUESTS]
    assert engine.choose.function is not None
    monkeypatch.setattr(engine.choose, "function", None)
    assert [engine.generate(prompt, **settings).tokens for _, prompt, settings in REQUESTS] == expected


def test_one_call_chooses_for_all(engine, monkeypatch):
    """Tokens after a shared prefill and after steps of several; those of a call alone."""
    requests: list[int] = []
    sample = engine.choose.function

    def counting(logits, rows, *rest):
        requests.append(rows.shape[0])
        return sample(logits, rows, *rest)

    monkeypatch.setattr(engine.choose, "function", counting)
    scheduler = engine.scheduler(3)
    for length in (20, 30, 3):
        scheduler.add(engine.sequence([1] * length, temperature=0, max_tokens=4, stop=()))
    run_all(scheduler)
    assert requests == [2, 2, 2, 3, 1, 1, 1]


def test_one_sequence_takes_the_calls_of_an_answer(engine, calls):
    prompt = engine.tokenizer.encode(STORY)[: 2 * CHUNK + 3]
    answer = engine.generate(prompt, temperature=0, max_tokens=4)
    expected = [("prefill", [CHUNK], [0])] * 2 + [("decode", [1], [0])] * 6
    assert calls == expected and answer.fed == answer.tokens[:3]
    calls.clear()
    scheduler = engine.scheduler(3)
    scheduler.add(engine.sequence(prompt, temperature=0, max_tokens=4))
    run_all(scheduler)
    assert calls == expected


def test_prompts_share_calls_and_take_turns_with_answers(engine, calls):
    scheduler, tokens = engine.scheduler(4), engine.tokenizer.encode(STORY)
    lengths = [1, FEW_TOKENS, CHUNK + 40, 50]
    for length in lengths:
        scheduler.add(engine.sequence(tokens[:length], temperature=0, max_tokens=30, stop=()))
    run_all(scheduler)
    assert calls[:8] == [
        ("prefill", [CHUNK], [2]),
        ("batch_decode", [1, 1], [0, 1]),
        ("prefill", [40, CHUNK - 40], [2, 3]),
        ("batch_decode", [1, 1, 1], [0, 1, 2]),
        ("prefill", [50 - (CHUNK - 40)], [3]),
        *[("batch_decode", [1] * 4, [0, 1, 2, 3])] * 3,
    ]
    assert {function for function, _, _ in calls[8:]} == {"batch_decode", "decode"}


def test_a_call_reads_as_many_ids_as_one_prompt_may(engine, calls):
    """What is left of a chunk beside other prompts goes to the next, where it is more than a few ids."""
    scheduler, tokens = engine.scheduler(3), engine.tokenizer.encode(STORY)
    for length in (CHUNK - FEW_TOKENS, 30, 30):
        scheduler.add(Reading(tokens[:length]))
    run_all(scheduler)
    assert calls == [("prefill", [CHUNK - FEW_TOKENS], [0]), ("prefill", [30, 30], [1, 2])]


def test_more_sequences_than_slots_wait_in_order(engine):
    scheduler = engine.scheduler(2)
    sequences = [engine.sequence("Tom", temperature=0, max_tokens=count) for count in (5, 2, 3, 1)]
    for sequence in sequences:
        scheduler.add(sequence)
    assert (scheduler.running, list(scheduler.waiting)) == ({}, sequences)
    scheduler.step()
    assert (scheduler.running, list(scheduler.waiting)) == ({sequences[0]: 0, sequences[1]: 1}, sequences[2:])
    finished = list(run_all(scheduler))
    assert [len(sequence.tokens) for sequence in sequences] == [5, 2, 3, 1]
    assert set(finished) == set(sequences) and scheduler.running == {}


def test_waiting_for_slots_that_nobody_frees(engine):
    scheduler = engine.scheduler(1)
    slot = scheduler.pool.allocate()
    scheduler.add(waiting := engine.sequence("Tom", temperature=0, max_tokens=2))
    with pytest.raises(UserError, match="no state slot is free for one that waits"):
        scheduler.step()
    scheduler.pool.free(slot)
    run_all(scheduler)
    assert len(waiting.tokens) == 2


def test_removed_sequences(engine):
    prompts = [QUESTION, "Tom", "Mia", STORY[:300]]
    expected = [engine.generate(prompt, temperature=0, max_tokens=12).text for prompt in prompts]
    scheduler = engine.scheduler(2)
    sequences = [engine.sequence(prompt, temperature=0, max_tokens=12) for prompt in prompts]
    for sequence in sequences:
        scheduler.add(sequence)
    for _ in range(5):
        scheduler.step()
    scheduler.remove(sequences[0])  # runs
    scheduler.remove(sequences[2])  # waits
    run_all(scheduler)
    scheduler.remove(sequences[1])  # is finished
    assert [sequences[1].text, sequences[3].text] == [expected[1], expected[3]]
    assert expected[0].startswith(sequences[0].text) and sequences[0].text not in ("", expected[0])
    assert sequences[0].finish_reason is None and sequences[2].tokens == []
    assert scheduler.pool.free_slots == 2


def test_a_common_beginning_is_read_once(engine, calls):
    """The slot of the beginning stays its owner's, and so do copies of it, in which the ends of the prompts are read."""
    beginning = engine.tokenizer.encode(STORY[:700] + "\n\n")
    ends = ["User: Who are you?\n\nAssistant:", "Tom"]
    expected = [engine.generate([*beginning, *engine.encode(end)], temperature=0, max_tokens=20) for end in ends]
    scheduler = engine.scheduler(3)
    pool = scheduler.pool
    slots = [pool.allocate()]
    scheduler.add(reading := Reading(beginning), slots[0])
    run_all(scheduler)
    assert (reading.finish_reason, reading.read, reading.pending) == ("read", len(beginning), [])
    assert reading.logits.shape == (engine.config.vocab_size,)
    calls.clear()
    sequences = [engine.sequence(end, temperature=0, max_tokens=20) for end in ends]
    for sequence in sequences:
        slots.append(pool.copy(slots[0]))
        scheduler.add(sequence, slots[-1])
    run_all(scheduler)
    assert [sequence.text for sequence in sequences] == [answer.text for answer in expected]
    assert max(max(lengths) for _, lengths, _ in calls) < 30
    assert pool.free_slots == 0
    np.testing.assert_array_equal(engine.prefill(beginning, engine.new_state()), reading.logits)


def test_a_slot_has_one_sequence_at_a_time(engine):
    scheduler = engine.scheduler(1)
    slot = scheduler.pool.allocate()
    scheduler.add(Reading([1]), slot)
    with pytest.raises(UserError, match=f"Another sequence runs in the state slot {slot}"):
        scheduler.add(Reading([2]), slot)
    run_all(scheduler)
    scheduler.add(Reading([2]), slot)


@pytest.mark.parametrize("tokens", [[-1], [5, 768], [2**70]])
def test_ids_outside_the_vocabulary_stop_at_the_door(engine, tokens):
    scheduler = engine.scheduler(1)
    with pytest.raises(UserError, match="Token ids must lie between 0 and 767"):
        scheduler.add(engine.sequence(tokens))
    assert scheduler.sequences == [] and scheduler.pool.free_slots == 1


def test_a_call_that_fails_ends_those_in_it_only(engine, monkeypatch):
    expected = engine.generate(STORY[:600], temperature=0, max_tokens=10).text
    again = engine.generate(QUESTION, temperature=0, max_tokens=10).text
    scheduler, call = engine.scheduler(3), engine.runner.call
    short = [engine.sequence(prompt, temperature=0, max_tokens=10) for prompt in ("Tom", "Mia")]
    long = engine.sequence(STORY[:600], temperature=0, max_tokens=10)
    for sequence in (*short, long):
        scheduler.add(sequence)

    def failing(function, *arguments):
        if function == "batch_decode":
            raise RuntimeError("The device is lost.")
        return call(function, *arguments)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="The device is lost"):
        patch.setattr(engine.runner, "call", failing)
        run_all(scheduler)
    assert [sequence.finish_reason for sequence in short] == ["error", "error"]
    assert list(scheduler.running) == [long] and scheduler.pool.free_slots == 2
    assert scheduler.step()[:2] == [(sequence, "") for sequence in short]
    scheduler.add(later := engine.sequence(QUESTION, temperature=0, max_tokens=10))
    run_all(scheduler)
    assert (long.text, later.text) == (expected, again)
    assert scheduler.pool.free_slots == 3


def test_logits_that_are_not_finite_end_one_sequence(engine):
    expected = engine.generate("Tom", temperature=0, max_tokens=10).text
    scheduler = engine.scheduler(2)
    broken, sound = (engine.sequence(prompt, temperature=0, max_tokens=10) for prompt in ("Mia", "Tom"))
    scheduler.add(sound)
    scheduler.add(broken)
    pieces = ""
    while broken.read < 5:
        pieces += "".join(text for sequence, text in scheduler.step() if sequence is sound)
    broken.last = Logits(tensor(np.full((1, 1, engine.config.vocab_size), np.nan, np.float32), CPU), 0)
    with pytest.raises(UserError, match="logits are not finite"):
        scheduler.step()
    assert broken.finish_reason == "error" and list(scheduler.running) == [sound]
    pieces += "".join(run_all(scheduler)[sound])
    assert pieces == sound.text == expected


def test_tokens_are_counted_as_read_or_written(engine):
    scheduler = engine.scheduler(3)
    before = vars(engine.stats).copy()
    for prompt in ([1] * 100, [2] * 3, [3]):
        scheduler.add(engine.sequence(prompt, max_tokens=5, seed=1, stop=(), temperature=0))
    run_all(scheduler)
    counted = {name: value - before[name] for name, value in vars(engine.stats).items()}
    assert (counted["prefill_tokens"], counted["decode_tokens"]) == (104, 3 * 4)
    assert counted["prefill_seconds"] > 0 and counted["decode_seconds"] > 0


def test_progress_of_a_prompt(engine, monkeypatch):
    seen: list[tuple[int, int]] = []

    def progress(read: int, total: int) -> None:
        seen.append((read, total))
        if read == 2 * CHUNK:
            raise KeyboardInterrupt

    monkeypatch.setattr(engine, "progress", progress)
    tokens: Sequence[int] = engine.tokenizer.encode(STORY)[: CHUNK + 3]
    engine.prefill(tokens, engine.new_state())
    assert seen == [(CHUNK, CHUNK + 3), (CHUNK + 3, CHUNK + 3)]
    seen.clear()
    with pytest.raises(KeyboardInterrupt):
        engine.stream([1] * 1000)
    assert seen == [(CHUNK, 1000), (2 * CHUNK, 1000)]

from __future__ import annotations

import json
import os
import shutil
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from rwkv_mlc import Engine, SamplingParams, UserError
from rwkv_mlc.engine.tvm_runtime import CPU, lend, to_numpy, view
from support.paths import DEMO
from support.reciter import LONG_TOKEN

STORY = (DEMO.parent / "heldout.txt").read_text(encoding="utf-8")


@pytest.fixture
def tokens(engine) -> list[int]:
    return engine.tokenizer.encode(STORY)[:200]


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * abs(expected).max())


def greedy(engine: Engine, logits: np.ndarray, state, count: int = 60) -> list[int]:
    tokens = []
    for _ in range(count):
        tokens.append(int(logits.argmax()))
        logits = engine.decode(tokens[-1], state)
    return tokens


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_prefill_in_chunks_is_one_prefill(engine, tokens, chunk, monkeypatch):
    whole, in_chunks = engine.new_state(), engine.new_state()
    expected = engine.prefill(tokens, whole)
    monkeypatch.setattr(engine, "prefill_chunk", chunk)
    logits = engine.prefill(tokens, in_chunks)
    assert_close(logits, expected)
    for found, array in zip(in_chunks.arrays(), whole.arrays()):
        assert_close(found, array)
    assert greedy(engine, logits, in_chunks) == greedy(engine, expected, whole)


def test_prefill_score_and_decode_agree_at_every_position(engine, tokens):
    scored = np.concatenate(list(engine.score(tokens, engine.new_state())))
    state = engine.new_state()
    decoded = np.stack([engine.decode(token, state) for token in tokens])
    assert scored.shape == (len(tokens), engine.config.vocab_size) and scored.dtype == np.float32
    assert_close(decoded, scored)
    assert_close(engine.prefill(tokens, engine.new_state()), scored[-1])


def test_state_saved_and_loaded_midway(engine, tokens, tmp_path):
    state = engine.new_state()
    engine.prefill(tokens[:100], state)
    engine.save_state(state, tmp_path / "a.state")
    loaded = engine.load_state(str(tmp_path / "a.state"))
    expected, logits = engine.prefill(tokens[100:], state), engine.prefill(tokens[100:], loaded)
    np.testing.assert_array_equal(logits, expected)
    assert greedy(engine, logits, loaded) == greedy(engine, expected, state)
    assert [path.name for path in tmp_path.iterdir()] == ["a.state"]


def test_a_copied_state_goes_its_own_way(engine, tokens):
    state = engine.new_state()
    engine.prefill(tokens, state)
    copy, before = state.copy(), [array.copy() for array in state.arrays()]
    engine.prefill(tokens[:5], copy)
    for array, expected in zip(state.arrays(), before):
        np.testing.assert_array_equal(array, expected)


def test_state_of_another_model_is_refused(engine, reciting, tmp_path):
    engine.save_state(engine.new_state(), tmp_path / "a.state")
    with pytest.raises(UserError, match="a.state is a state of rwkv-5-village-q0f32, another model than reciter-q0f32"):
        reciting.load_state(tmp_path / "a.state")


def test_files_that_hold_no_state(engine, tmp_path):
    path = tmp_path / "a.state"
    engine.save_state(engine.new_state(), path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="cannot be read"):
        engine.load_state(path)
    shutil.copyfile(DEMO / "model.safetensors", path)
    with pytest.raises(UserError, match="holds no saved state"):
        engine.load_state(path)
    for missing in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="cannot be read"):
            engine.load_state(missing)


def test_a_state_written_into_a_pipe(engine, tokens, tmp_path):
    """What is no file is written to and stays what it is: a device would be lost with what takes its place."""
    pipe, state = tmp_path / "pipe", engine.new_state()
    engine.prefill(tokens, state)
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as reader:
        read = reader.submit(pipe.read_bytes)
        engine.save_state(state, pipe)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    (tmp_path / "file").write_bytes(read.result())
    for found, array in zip(engine.load_state(tmp_path / "file").arrays(), state.arrays(), strict=True):
        np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("name", ["", ".", "none/a.state", "file/a.state"])
def test_states_that_cannot_be_written(engine, tmp_path, name):
    (tmp_path / "file").write_text("kept", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be written"):
        engine.save_state(engine.new_state(), tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("function", ["prefill", "batch_decode"])
def test_sequences_of_a_batch_do_not_touch_each_other(engine, tokens, function):
    runner = engine.runner
    alone = [runner.new_state(), runner.new_state()]
    histories = [tokens[:40], tokens[50:73]]
    together = runner.new_state(3)
    runner.run("prefill", histories, together, slots=[2, 0])
    for history, state in zip(histories, alone):
        runner.run("prefill", [history], state)
    inputs = [tokens[100:130], tokens[140:141]] if function == "prefill" else [[tokens[100]], [tokens[140]]]
    logits = runner.run(function, inputs, together, slots=[2, 0])
    for i, slot in enumerate([2, 0]):
        expected = runner.run("prefill", [inputs[i]], alone[i])
        assert_close(logits[i], expected[0])
        for found, array in zip(together.arrays(), alone[i].arrays()):
            assert_close(found[slot], array[0])
    for found, fresh in zip(together.arrays(), runner.new_state().arrays()):
        np.testing.assert_array_equal(found[1], fresh[0])


@pytest.mark.parametrize(
    "function, sequences, slots, message",
    [
        ("prefill", [[5, 6]], [5], "Each of 1 sequences needs a slot of its own, below 2, found 5"),
        ("prefill", [[5, 6]], [-1], "found -1"),
        ("prefill", [[5, 6]] * 3, None, "Each of 3 sequences needs a slot of its own, below 2, found 0, 1, 2"),
        ("batch_decode", [[5], [6]], [1, 1], "Each of 2 sequences needs a slot of its own"),
        ("score", [[5], [6]], [1], "found 1"),
        ("prefill", [[5], []], None, "at least one token of each sequence, found 2 of 0 to 1 tokens"),
        ("score", [], None, "found 0 of 0 to 0 tokens"),
        ("decode", [[5, 6]], None, "decode reads one token of one sequence, found 1 of 2 to 2 tokens"),
        ("decode", [[5], [6]], None, "decode reads one token of one sequence, found 2 of 1 to 1 tokens"),
        (
            "batch_decode",
            [[5], [6, 7]],
            None,
            "batch_decode reads one token of each sequence, found 2 of 1 to 2 tokens",
        ),
    ],
)
def test_calls_that_would_leave_their_tensors(engine, function, sequences, slots, message):
    state = engine.runner.new_state(2)
    with pytest.raises(UserError, match=message):
        engine.runner.run(function, sequences, state, slots)
    for found, fresh in zip(state.arrays(), engine.runner.new_state(2).arrays()):
        np.testing.assert_array_equal(found, fresh)


@pytest.mark.parametrize("function", ["generate", "sample", "_metadata", 3])
def test_functions_that_read_no_tokens(engine, function):
    with pytest.raises(UserError, match="reads tokens with prefill, score, decode, batch_decode, not with "):
        engine.runner.run(function, [[5]], engine.runner.new_state())


def test_a_state_of_another_model(engine, reciting):
    with pytest.raises(UserError, match=r"a state of another model: it has 3 tensors, float32 \[128\], .*new_state"):
        engine.runner.run("decode", [[5]], reciting.runner.new_state())


def test_inputs_lie_where_kernels_assume_them(engine):
    """Vectors of 17 sequences' numbers are moved by instructions that fault elsewhere; NumPy promises 16 bytes."""
    room = np.arange(64, dtype=np.int32)
    for start in range(16):
        array = room[start : start + 17]
        lent = lend(array, CPU)
        np.testing.assert_array_equal(to_numpy(lent), array)
        assert view(lent).ctypes.data % 64 == 0
    for _ in range(50):
        logits = engine.runner.run("prefill", [[5, 6, 7]] * 17, engine.runner.new_state(17))
        assert np.ptp(logits, axis=0).max() == 0


@pytest.mark.parametrize("token", [-1, 768, 2**40, 2**70])
def test_tokens_outside_the_vocabulary(engine, token):
    with pytest.raises(UserError, match="between 0 and 767"):
        engine.decode(token, engine.new_state())


NO_INTEGERS = [[1.5], [True], [1, True], ["a"], [None], [[1, 2]], np.array([1.0]), np.array([[1, 2]])]
NO_LISTS = [None, 5, {1, 2}, iter([1, 2]), np.array(3)]


@pytest.mark.parametrize("tokens", [*NO_INTEGERS, *NO_LISTS])
def test_tokens_that_are_no_integers(engine, tokens):
    calls = (
        lambda: engine.generate(tokens, max_tokens=1),
        lambda: engine.prefill(tokens, engine.new_state()),
        lambda: next(engine.score(tokens, engine.new_state())),
        lambda: engine.runner.run("prefill", [tokens], engine.new_state()),
    )
    for call in calls:
        with pytest.raises(UserError, match="Token ids are (integers|a list or an array of integers), found "):
            call()


@pytest.mark.parametrize("slots", [[0.5], [True], ["a"], [None], "0", 0])
def test_slots_that_are_no_integers(engine, slots):
    with pytest.raises(UserError, match="Slots are (integers|a list or an array of integers), found "):
        engine.runner.run("prefill", [[5, 6]], engine.new_state(), slots)


def test_a_state_without_slots(engine):
    for slots in (0, -1):
        with pytest.raises(UserError, match=f"A state has at least one slot, not {slots}"):
            engine.runner.new_state(slots)


def test_tokens_and_stops_of_any_kind_of_list(engine):
    expected = engine.generate([5, 6], max_tokens=8, temperature=0, stop=("e",))
    for tokens in ((5, 6), np.array([5, 6], np.uint16), [np.int64(5), 6]):
        answer = engine.generate(tokens, max_tokens=8, temperature=0, stop=["e"])
        assert answer.tokens == expected.tokens and answer.text == expected.text and answer.params == expected.params


def test_the_same_seed_gives_the_same_text(engine):
    def text(seed: int | None) -> str:
        return engine.generate("User: Hello", temperature=2.0, top_p=1.0, seed=seed, max_tokens=40).text

    first = engine.generate("User: Hello", temperature=2.0, top_p=1.0, max_tokens=40)
    assert text(first.seed) == first.text
    assert len({text(seed) for seed in range(4)}) == 4


def test_a_generation_is_what_the_model_says(reciting):
    answer = reciting.generate("Recite:", temperature=0, max_tokens=5)
    assert (answer.text, answer.finish_reason) == (" abcd", "length")
    assert reciting.tokenizer.decode(answer.tokens) == " abcd"
    assert answer.fed == answer.tokens[:-1]
    assert answer.prompt == reciting.tokenizer.encode("Recite:")


@pytest.mark.parametrize(
    "stop, text",
    [(("cde",), " ab"), (("def", "cd"), " ab"), (("y", "wxy", "vwx"), " abcdefghijklmnopqrstu"), (("é€",), " a-z")],
)
def test_stop_strings_over_several_tokens(reciting, stop, text):
    answer = reciting.generate("Recite:", temperature=0, stop=stop)
    assert (answer.text, answer.finish_reason) == (text.replace("a-z", "abcdefghijklmnopqrstuvwxyz"), "stop")
    pieces = list(reciting.stream("Recite:", temperature=0, stop=stop))
    assert "".join(pieces) == answer.text


def test_streamed_pieces_are_whole_characters(reciting):
    assert list(reciting.stream("z", temperature=0, max_tokens=10)) == ["é", "€", "😀", " "]
    assert list(reciting.stream("z", temperature=0, max_tokens=8)) == ["é", "€", "\ufffd"]


def test_an_answer_goes_on_where_its_iteration_stopped(reciting):
    answer = reciting.stream("Recite:", temperature=0, max_tokens=6)
    assert [next(iter(answer)) for _ in range(2)] == [" ", "a"]
    assert "".join(answer) == "bcde" and answer.text == " abcde"


def test_end_of_text_ends_an_answer(engine):
    answer = engine.generate(
        "User: Hello!\n\nAssistant: Hello! How can I help you?\n\n", seed=1, stop=(), max_tokens=5000
    )
    assert answer.finish_reason == "stop" and answer.tokens[-1] == 0 and 0 not in answer.tokens[:-1]


@pytest.mark.parametrize("eos", [ord("e") + 1, [0, ord("e") + 1, 200]])
def test_the_artifact_says_which_tokens_end_an_answer(reciter, tmp_path, eos):
    folder = Path(shutil.copytree(reciter, tmp_path / "reciter-q0f32"))
    edit(folder / "params" / "mlc-chat-config.json", lambda data: data.update(eos_token_id=eos))
    engine = Engine(folder)
    answer = engine.generate("Recite:", temperature=0, max_tokens=9)
    assert (answer.text, answer.finish_reason, answer.tokens[-1]) == (" abcd", "stop", ord("e") + 1)
    engine.template = engine.template.model_copy(update={"stop_token_ids": (ord("c") + 1,)})
    assert engine.generate("Recite:", temperature=0, max_tokens=9).text == " ab"


def test_an_empty_prompt_is_the_end_of_text(engine):
    for empty in ("", b"", []):
        answer = engine.generate(empty, temperature=0, max_tokens=10)
        assert answer.prompt == [0]
        assert answer.text == engine.generate([0], temperature=0, max_tokens=10).text
    with pytest.raises(UserError, match="at least one token"):
        engine.prefill([], engine.new_state())


def test_prompts_of_any_kind(engine):
    ids = engine.tokenizer.encode("Hello")
    for prompt in ("Hello", b"Hello", ids, np.array(ids)):
        assert list(engine.stream(prompt).prompt) == ids
    assert (
        engine.stream(b"\xff\xfe").prompt
        == engine.stream("\udcff\udcfe").prompt
        == engine.tokenizer.encode(b"\xff\xfe")
    )


def test_a_prompt_of_a_megabyte(reciting):
    seen: list[tuple[int, int]] = []
    prompt = LONG_TOKEN * (2**20 // len(LONG_TOKEN)) + b":"
    reciting.progress = lambda read, total: seen.append((read, total))
    try:
        assert reciting.generate(prompt, temperature=0, max_tokens=3).text == " ab"
    finally:
        reciting.progress = None
    total = 2**20 // len(LONG_TOKEN) + 1
    assert seen == [(min(read, total), total) for read in range(512, total + 512, 512)]


def test_an_idle_engine_lets_the_processor_rest(engine, tokens):
    """The kernels' threads wait for the next token for a moment only; that moment lasts longer on a busy machine."""
    greedy(engine, engine.prefill(tokens, state := engine.new_state()), state, count=5)
    for _ in range(20):
        began = time.process_time()
        time.sleep(1)
        if (used := time.process_time() - began) < 0.1:
            return
    pytest.fail(f"{used:.2f} seconds of processor time in an idle second")


def test_settings_outside_their_range(engine):
    with pytest.raises(UserError, match="temperature must be a number from 0.0 to 100.0, not -1"):
        engine.stream("Hello", temperature=-1)
    with pytest.raises(UserError, match="max_tokens"):
        SamplingParams(max_tokens=0)


def edit(path: Path, change: Callable[[dict], None]) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")


def record(change: Callable[[dict], None]) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "build-record.json", lambda data: change(data["libraries"]["llvm"]))


def chat_config(change: Callable[[dict], None]) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "params" / "mlc-chat-config.json", change)


def flip_last_byte(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))


DAMAGES = {
    "missing shard": (lambda folder: (folder / "params" / "params_shard_0.bin").unlink(), "lacks .*params_shard_0.bin"),
    "changed shard": (lambda folder: flip_last_byte(folder / "params" / "params_shard_0.bin"), "checksum differs"),
    "no index": (lambda folder: (folder / "params" / "tensor-cache.json").unlink(), "tensor-cache.json is missing"),
    "no library": (lambda folder: next(folder.glob("*-llvm.so")).unlink(), "library .*-llvm.so is missing"),
    "changed library": (lambda folder: flip_last_byte(next(folder.glob("*-llvm.so"))), "checksum differs"),
    "no record": (lambda folder: (folder / "build-record.json").unlink(), "build-record.json is missing"),
    "library of another target": (
        lambda folder: edit(folder / "build-record.json", lambda data: data.update(libraries={})),
        "no library for llvm .*run rwkv-mlc compile",
    ),
    "another CPU": (
        record(lambda library: library["cpu_features"].append("amx-fp64")),
        "needs amx-fp64, which this CPU lacks; build it again on this machine",
    ),
    "another architecture": (
        record(lambda library: library["target"].update(mtriple="riscv64-unknown-linux-gnu")),
        "is for riscv64 and this machine is",
    ),
    "another TVM": (
        record(lambda library: library["versions"].update({"apache-tvm": "0.26.0"})),
        "built with apache-tvm 0.26.0 and .* is installed",
    ),
    "no tokenizer": (lambda folder: (folder / "params" / "rwkv_vocab.txt").unlink(), "lacks its tokenizer"),
    "no template": (chat_config(lambda data: data.pop("conv_template")), "conv_template"),
    "no chunk size": (
        chat_config(lambda data: data.update(prefill_chunk_size=0)),
        "gives prefill_chunk_size as 0, expected at least 1",
    ),
    "wrong default": (
        chat_config(lambda data: data.update(temperature="warm")),
        "gives temperature as 'warm', expected a number",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_artifacts_that_cannot_run(damage, reciter, tmp_path):
    change, message = DAMAGES[damage]
    folder = Path(shutil.copytree(reciter, tmp_path / "reciter-q0f32"))
    (folder / "params" / ".verified.json").unlink(missing_ok=True)
    change(folder)
    with pytest.raises(UserError, match=message) as error:
        Engine(folder)
    assert "\n" not in str(error.value)


def test_unknown_device_and_folder(demo, tmp_path):
    with pytest.raises(UserError, match="Unknown device 'abacus'; valid devices are auto, cpu"):
        Engine(demo, "abacus")
    with pytest.raises(UserError, match="is no artifact"):
        Engine(tmp_path)

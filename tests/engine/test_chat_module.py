"""Scripts that were written for mlc_chat, with one import changed, and what ``ChatModule`` makes of its settings."""

from __future__ import annotations

import queue
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

from rwkv_mlc import Chat, Engine, UserError
from rwkv_mlc.mlc_chat import ChatConfig, ChatModule, ConvConfig, GenerationConfig, callback
from rwkv_mlc.mlc_chat.interface.openai_api import ChatMessage
from rwkv_mlc.mlc_chat.search import find_model
from support.reciter import RECITED

RECITAL = RECITED.strip()
GREEDY = GenerationConfig(temperature=0.0, max_gen_len=8)

GETTING_STARTED = """
from mlc_chat import ChatModule
from mlc_chat.callback import StreamToStdout

cm = ChatModule(model="NAME")
output = cm.generate(prompt="What is the meaning of life?", progress_callback=StreamToStdout(callback_interval=2))
print(f"Statistics: {cm.stats()}")
cm.reset_chat()
print(cm.benchmark_generate(prompt="What is benchmark?", generate_length=16))
"""

OTHER_SETTINGS = """
from mlc_chat import ChatConfig, ChatModule, ConvConfig, GenerationConfig

conv_config = ConvConfig(system="Below is a talk of two.", roles=["Ann", "Bob"], stop_str="efg")
chat_config = ChatConfig(temperature=0.0, max_gen_len=20, conv_config=conv_config)
cm = ChatModule(model="NAME", device="auto", chat_config=chat_config)
stopped = cm.generate("Go on")
two = cm.generate("Go on", generation_config=GenerationConfig(n=2, max_gen_len=3, stop=["zz", "q"]))
cm.reset_chat(ChatConfig(max_gen_len=5, temperature=0.0))
five = cm.generate("Go on")
"""

STREAMING = """
from threading import Thread

from mlc_chat import ChatModule, GenerationConfig
from mlc_chat.callback import StreamIterator

cm = ChatModule(model="NAME")
stream = StreamIterator(callback_interval=3, timeout=60)
settings = GenerationConfig(temperature=0.0, max_gen_len=12)
arguments = {"prompt": "Hello", "generation_config": settings, "progress_callback": stream}
thread = Thread(target=cm.generate, kwargs=arguments)
thread.start()
pieces = list(stream)
thread.join()
"""


@pytest.fixture
def at_home(tmp_path, monkeypatch, reciter) -> Path:
    """A working folder whose ``dist`` has the reciter."""
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / reciter.name).symlink_to(reciter)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(script: str, model: str) -> dict:
    """The variables of a script after it has run."""
    variables: dict = {}
    exec(script.replace("from mlc_chat", "from rwkv_mlc.mlc_chat").replace("NAME", model), variables)
    return variables


@pytest.fixture(scope="module")
def cm(reciter) -> ChatModule:
    return ChatModule(str(reciter))


def test_the_getting_started_script(at_home, reciter, capsys):
    variables = run(GETTING_STARTED, reciter.name)
    answer, statistics, raw = capsys.readouterr().out.split("\n", 2)
    assert answer == variables["output"] and len(answer) > 20
    assert (
        statistics.startswith("Statistics: prefill: ") and statistics.endswith(" tok/s") and ", decode: " in statistics
    )
    assert len(variables["cm"].engine.tokenizer.encode(raw.removesuffix("\n"))) == 16
    assert variables["cm"].engine.stats.decode_tokens == 15


def test_a_script_with_settings_of_its_own(at_home, reciter):
    variables = run(OTHER_SETTINGS, reciter.name)
    assert variables["stopped"] == "abcd"
    assert variables["two"] == ["ab", "ab"]
    assert variables["five"] == "abcd"


def test_a_script_that_streams_from_a_thread(at_home, reciter):
    pieces = run(STREAMING, reciter.name)["pieces"]
    assert "".join(pieces) == RECITAL[:11] and 3 <= len(pieces) <= 5


def test_a_prompt_is_a_conversation_of_its_own(cm):
    chat = Chat(cm.engine, cm.engine.chat_params(temperature=0.0, max_tokens=8))
    expected = "".join(chat.send("Hello")).strip()
    assert cm.generate("Hello", GREEDY) == cm.generate("Hello", GREEDY) == expected == "abcdefg"


def read_by(cm: ChatModule, monkeypatch, prompt: str | list[ChatMessage]) -> str:
    """The text that an answer of one token reads before it."""
    tokens: list[int] = []
    call = cm.engine.runner.call
    monkeypatch.setattr(
        cm.engine.runner,
        "call",
        lambda function, given, *where: tokens.extend(given[0]) or call(function, given, *where),
    )
    cm.generate(prompt, GenerationConfig(temperature=0.0, max_gen_len=1))
    return cm.engine.tokenizer.decode(tokens)


def test_messages_are_read_as_a_conversation(reciter, monkeypatch):
    cm = ChatModule(str(reciter), chat_config=ChatConfig(conv_config=ConvConfig(system="Talk.")))
    said = [("user", "Hi\n\n\nyou"), ("assistant", "Hello."), ("user", "Bye")]
    messages = [ChatMessage(role=role, content=content) for role, content in said]
    text = "Talk.\n\nUser: Hi\nyou\n\nAssistant: Hello.\n\nUser: Bye\n\nAssistant:"
    assert read_by(cm, monkeypatch, messages).startswith(text)
    for wrong in (messages[:2], messages[1:], [], [ChatMessage(role="system", content="x"), messages[0]], ["x"], 3):
        with pytest.raises(UserError, match=r"roles of the messages|a text or a list of ChatMessage"):
            cm.generate(wrong)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (ConvConfig(system="A talk:", roles=["A", "B"], seps=["\n", "</s>"]), "A talk:\nA: x\nB:"),
        (ConvConfig(system="", role_msg_sep="> ", role_empty_sep=">"), "User> x\n\nAssistant>"),
        (ConvConfig(system="", messages=[["User", "1"], ["Assistant", "2"]]), "User: 1\n\nAssistant: 2\n\nUser: x"),
        (ConvConfig(system="", messages=[["User", "1"], ["Assistant", "2"]], offset=0), "User: x\n\nAssistant:"),
        (ConvConfig(separator_style=1), "x"),
        (ConvConfig(separator_style=2, system="never"), "x"),
    ],
)
def test_a_template_is_overridden(cm, monkeypatch, config, text):
    cm.reset_chat(ChatConfig(conv_config=config))
    assert read_by(cm, monkeypatch, "x").startswith(text)
    cm.reset_chat(ChatConfig())
    assert read_by(cm, monkeypatch, "x").startswith("User: hi\n\nAssistant: Hi. I am")


def test_penalties_are_those_that_were_documented(cm):
    """The frequency's has an effect; a repetition's has one where the other two are 0, and counts do not shrink."""
    cm.reset_chat(ChatConfig())
    own = cm._params(None)
    assert (own.presence_penalty, own.frequency_penalty, own.max_tokens) == (0.5, 0.5, cm.chat_config.max_gen_len)
    given = cm._params(GenerationConfig(frequency_penalty=1.5, repetition_penalty=1.2))
    assert (given.presence_penalty, given.frequency_penalty, given.repetition_penalty) == (0.0, 1.5, 1.0)
    given = cm._params(GenerationConfig(repetition_penalty=1.2, stop="x"))
    assert (given.presence_penalty, given.frequency_penalty, given.repetition_penalty) == (0.0, 0.0, 1.2)
    assert given.penalty_decay == 1.0 and given.stop == ("\n\n", "x")
    cm.reset_chat(ChatConfig(repetition_penalty=1.3))
    assert (cm._params(None).presence_penalty, cm._params(None).repetition_penalty) == (0.0, 1.3)
    cm.reset_chat(ChatConfig())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ChatConfig(temperature="hot"), "chat_config gives temperature as 'hot', expected a number"),
        (ChatConfig(temperature=-1.0), "temperature must be a number from 0.0 to 100.0"),
        (ChatConfig(repetition_penalty=0.996), "repetition_penalty must be a number from 1.0"),
        (ChatConfig(num_shards=2), "chat_config gives num_shards as 2, expected 1"),
        (ChatConfig(tokenizer_files=["other.json"]), "tokenizer_files must be the artifact's"),
        (ChatConfig(conv_template="vicuna"), "There is no 'vicuna' among the templates"),
        (ChatConfig(conv_config=ConvConfig(add_bos=True)), "conv_config.add_bos as True, expected False"),
        (ChatConfig(conv_config=ConvConfig(prefix_tokens=[1])), "conv_config.prefix_tokens as"),
        (ChatConfig(conv_config=ConvConfig(roles=["A"])), "conv_config.roles as"),
        (ChatConfig(conv_config=ConvConfig(stop_tokens=[1 << 20])), "stop_tokens has 1048576, but the model has"),
        (ChatConfig(conv_config=ConvConfig(messages=[["Eve", "x"]])), "has one of 'Eve', but the roles are 'User'"),
        (GenerationConfig(), r"chat_config must be a ChatConfig"),
        (ChatConfig(top_p=np.float64(0.5), max_gen_len=np.int64(3)), "max_gen_len as"),
    ],
)
def test_settings_that_mean_nothing_change_nothing(cm, config, message):
    before, template = cm.chat_config, cm.engine.template
    with pytest.raises(UserError, match=message):
        cm.reset_chat(config)
    assert cm.chat_config is before and cm.engine.template is template


def test_fields_that_there_are_not(cm):
    with pytest.raises(TypeError, match="unexpected keyword argument 'temprature'"):
        GenerationConfig(temprature=1)
    with pytest.raises(AttributeError):
        ChatConfig().temprature = 1
    with pytest.raises(UserError, match="generation_config gives n as 0, expected at least 1"):
        cm.generate("x", GenerationConfig(n=0))
    with pytest.raises(UserError, match="embed_text is not there"):
        cm.embed_text("x")
    with pytest.raises(UserError, match="generate_length must be a number of tokens of at least 1, not -1"):
        cm.benchmark_generate("x", -1)


def test_settings_can_be_given_back_as_they_are_read(cm):
    cm.reset_chat(ChatConfig(max_gen_len=4, temperature=0.0))
    cm.chat_config.max_gen_len = 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cm.reset_chat(cm.chat_config)
    assert cm.generate("Hello") == "ab"
    with pytest.warns(UserWarning, match="model_lib of a ChatConfig is ignored"):
        cm.reset_chat(ChatConfig(model_lib="other"))


def test_a_failure_ends_the_stream(cm):
    cm.reset_chat(ChatConfig())
    stream = callback.StreamIterator(timeout=60)
    raised: list[BaseException] = []

    def generate() -> None:
        try:
            cm.generate("\udfff", progress_callback=stream)
        except UserError as error:
            raised.append(error)

    thread = threading.Thread(target=generate)
    thread.start()
    assert list(stream) == []
    thread.join()
    assert len(raised) == 1
    with pytest.raises(queue.Empty):
        next(callback.StreamIterator(timeout=0.01))


def test_a_callback_is_told_what_is_new(cm):
    calls: list[tuple[str, bool]] = []

    class Listening(callback.DeltaCallback):
        callback_interval = 3

        def delta_callback(self, delta_message: str) -> None:
            calls.append((delta_message, False))

        def stopped_callback(self) -> None:
            calls.append(("", True))

    cm.reset_chat(ChatConfig())
    listening = Listening()
    assert cm.generate("Hello", GREEDY, listening) == "abcdefg" and listening.curr_message == ""
    assert "".join(delta for delta, _ in calls) == "abcdefg" and calls[-1] == ("", True)
    assert [stopped for _, stopped in calls].count(True) == 1 and 4 <= len(calls) <= 5


def test_the_statistics_are_of_the_last_answer(cm):
    cm.generate("Hello", GREEDY)
    tokens = cm.engine.stats.prefill_tokens
    cm.generate("Hello", GREEDY)
    assert cm.engine.stats.prefill_tokens == tokens > 0
    lines = cm.stats(verbose=True).splitlines()
    assert lines[0] == "----------- prefill -----------" and lines[2] == f"total tokens: {tokens} tok"
    assert lines[4] == "------------ decode ------------" and len(lines) == 8
    cm.reset_chat()
    assert cm.stats() == "prefill: 0.0 tok/s, decode: 0.0 tok/s"


def test_where_a_model_is_looked_for(at_home, reciter):
    name, prebuilt = reciter.name, Path("dist", "prebuilt")
    assert find_model(name) == Path("dist", name, "params")
    prebuilt.mkdir()
    (prebuilt / f"mlc-chat-{name}").symlink_to(reciter)
    assert find_model(name) == Path("dist", name, "params")
    (prebuilt / name).symlink_to(reciter)
    assert find_model(name) == prebuilt / name
    Path(name).symlink_to(reciter)
    assert find_model(name) == Path(name)
    for link in (Path(name), prebuilt / name, Path("dist", name)):
        link.unlink()
    assert find_model(name) == prebuilt / f"mlc-chat-{name}"
    assert Engine(find_model(name)).name == name


def test_a_model_that_is_not_there(at_home, reciter):
    with pytest.raises(FileNotFoundError, match="Cannot find the model folder. We searched over") as raised:
        ChatModule(reciter.name[:-1])
    assert isinstance(raised.value, UserError) and f"did you mean dist/{reciter.name}?" in str(raised.value)
    Path("empty").mkdir()
    with pytest.raises(
        FileNotFoundError, match="does not seem to refer to a valid model folder: there is no mlc-chat-"
    ):
        ChatModule("empty")


def test_a_library_is_one_of_the_artifacts(reciter, tmp_path):
    library = next(reciter.glob("*-llvm.so"))
    cm = ChatModule(str(reciter), model_lib_path=str(library))
    assert Path(cm.model_lib_path) == library and Path(cm.config_file_path).is_file()
    other = tmp_path / "other.so"
    other.write_bytes(b"")
    for device, path, message in (
        ("auto", str(other), "is not among the libraries of"),
        ("auto", str(tmp_path / "none.so"), "The `model_lib_path` you passed in is not a file"),
        ("vulkan", str(library), "runs on cpu, not on vulkan"),
        ("tpu", None, "Unknown device 'tpu'"),
    ):
        with pytest.raises(UserError, match=message):
            ChatModule(str(reciter), device, model_lib_path=path)

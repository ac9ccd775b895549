from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rwkv_mlc import data_files
from rwkv_mlc.engine.templates import Template, load_template
from rwkv_mlc.errors import UserError
from rwkv_mlc.typed_json import parse

TESTS = Path(__file__).parent
VECTORS = json.loads((TESTS / "generation_vectors.json").read_text(encoding="utf-8"))["templates"]
NAMES = ["plain", "rwkv_g1", "rwkv_raven", "rwkv_world", "rwkv_world_v3"]


def template_of(data: dict) -> Template:
    """From its JSON form."""
    return parse(Template, json.dumps(data), "The prompt template", "correct it")


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: case["name"])
def test_vectors(case):
    template = load_template(case["name"])
    assert template.system_prompt() == case["system_prompt"]
    for turn in case["user_turns"]:
        assert template.user_turn(turn["text"]) == turn["turn"]
    for end in case["after_answer"]:
        assert template.after_answer(bytes.fromhex(end["answer"])).hex() == end["feed"]
    assert (template.think is not None) == ("think" in case) and (template.tool_use is not None) == ("tools" in case)
    for mode, turn in case.get("think", {}).items():
        assert template.user_turn("Hello", template.think_mode(mode)) == turn
    for end in case.get("told", ()):
        assert template.told(end["answer"]).hex() == end["feed"]
    if "tools" in case:
        assert template.system_prompt([{"name": "f"}]) == case["tools"]


def test_world_prompt_is_chatrwkvs():
    """ChatRWKV's API_DEMO_CHAT.py: init_ctx, then "User: " + msg + "\\n\\nAssistant:"."""
    world = load_template("rwkv_world")
    assert world.system_prompt() == (
        "User: hi\n\nAssistant: Hi. I am your assistant and I will provide expert full response in full details. "
        "Please feel free to ask any question and I will always answer it.\n\n"
    )
    assert world.user_turn("What is RWKV?") == "User: What is RWKV?\n\nAssistant:"
    assert world.stop_str == ("\n\n",)


def test_raven_prompt_is_chatrwkvs():
    """ChatRWKV's v2/chat.py with v2/prompt/default/English-2.py."""
    raven = load_template("rwkv_raven")
    prompt = raven.system_prompt()
    assert prompt.startswith("\nThe following is a coherent verbose detailed conversation between a girl named Alice")
    assert "advices.\n\nBob: Hello Alice, how are you doing?\n\nAlice: Hi! Thanks, I'm fine." in prompt
    assert prompt.endswith("So please go ahead!\n\n")
    assert raven.user_turn("Hello") == "Bob: Hello\n\nAlice:"


def test_g1_prompts_are_those_it_was_trained_with():
    """RWKV-LM's RWKV-v7/RWKV7-G1x-templates.txt."""
    g1 = load_template("rwkv_g1")
    assert (g1.system_prompt(), g1.stop_token_ids) == ("", (0,))
    told = g1.model_copy(update={"system_message": " Be\r\n\r\n\nbrief.\n"})
    assert told.system_prompt() == "System: Be\nbrief.\n\n"
    assert told.system_prompt([{"name": "é"}]) == (
        'System: Be\nbrief.\nTools:\n[{"name": "é"}]\nReturn only a JSON function call.\n\n'
    )
    turns = {mode: g1.user_turn("a\n\n\nb ", g1.think_mode(mode)) for mode in g1.think.modes}
    assert turns == {
        "off": "User: a\nb\n\nAssistant: <think></think",
        "on": "User: a\nb\n\nAssistant: <think",
        "a bit": "User: a\nb (think a bit)\n\nAssistant: <think",
        "a lot": "User: a\nb (think a lot)\n\nAssistant: <think",
    }
    assert g1.think_mode(None) is g1.think.modes["off"]
    assert g1.user_turn("a") + g1.told("b\n\nc").decode() == "User: a\n\nAssistant: b\n\nc\n\n"
    with pytest.raises(UserError, match="think must be one of off, on, a bit, a lot, not 'much'"):
        g1.think_mode("much")


@pytest.mark.parametrize("name", ["plain", "rwkv_raven", "rwkv_world", "rwkv_world_v3"])
def test_templates_without_think_mode_and_tools(name):
    template = load_template(name)
    assert template.think_mode(None) is None
    with pytest.raises(UserError, match=f"The model's template, {name}, has no think mode; leave out think=off"):
        template.think_mode("off")
    with pytest.raises(UserError, match=f"The model's template, {name}, has no form for tools"):
        template.system_prompt([{"name": "f"}])


@pytest.mark.parametrize("place", [(), ("think",), ("think", "modes", "on"), ("tool_use",)], ids=".".join)
def test_unknown_keys_of_a_template_are_refused(tmp_path, monkeypatch, place):
    data = json.loads((data_files.ROOT / "templates" / "rwkv_g1.json").read_text(encoding="utf-8"))
    inner = data
    for key in place:
        inner = inner[key]
    inner["mood"] = "good"
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "mine.json").write_text(json.dumps(data), encoding="utf-8")
    monkeypatch.setattr(data_files, "ROOT", tmp_path)
    with pytest.raises(UserError, match=re.escape(f"has a key {'.'.join((*place, 'mood'))}, which means nothing")):
        load_template("mine")


@pytest.mark.parametrize("key", ["think.begin", "think.end", "tool_use.call_begin", "tool_use.call_end"])
def test_marks_are_not_empty(key):
    data = load_template("rwkv_g1").to_dict()
    outer, _, inner = key.partition(".")
    data[outer][inner] = ""
    with pytest.raises(UserError, match=f"gives {key} as '', expected at least 1 characters"):
        template_of(data)


def test_a_mode_that_is_not_there_is_no_default():
    data = load_template("rwkv_g1").to_dict()
    data["think"]["default"] = "much"
    with pytest.raises(UserError, match="gives default as 'much', expected one of off, on, a bit, a lot"):
        template_of(data)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", ["hi", " hi \n", "a\n\n\nb", "", "tail:  "])
def test_no_prompt_ends_in_a_space_of_ours_nor_holds_the_separator_inside(name, text):
    template = load_template(name)
    turn = template.user_turn(text)
    if name == "plain":
        assert turn == text
    else:
        assert not turn.endswith(" ")
        assert turn.count("\n\n") == 1


def test_blank_lines_of_the_user_are_folded():
    turn = load_template("rwkv_world").user_turn("\r\n one\r\n\r\ntwo\n \t\n\n  three\rfour\n\n")
    assert turn == "User: one\ntwo\n  three\nfour\n\nAssistant:"


@pytest.mark.parametrize("name", NAMES)
def test_json_round_trip(name):
    template = load_template(name)
    data = json.loads((TESTS.parents[1] / "configs" / "templates" / f"{name}.json").read_text(encoding="utf-8"))
    assert template.to_dict() == data
    assert template_of(template.to_dict()) == template
    assert template.name == name


def test_two_separators_follow_user_and_assistant():
    template = template_of(
        {
            "name": "two",
            "roles": {"user": "Q", "assistant": "A"},
            "seps": ["<u>", "<a>"],
            "messages": [["user", "1"], ["assistant", "2"]],
            "role_content_sep": "=",
            "role_empty_sep": "=",
            "system_message": "S ",
            "function_string": "ignored",
        }
    )
    assert template.system_prompt() == "S Q=1<u>A=2<a>"
    assert template.user_turn(" as is\n\n ") == "Q= as is\n\n <u>A="
    assert template.after_answer(b"x<") == b"a>"


def test_system_message_can_be_replaced():
    world = load_template("rwkv_world").model_copy(update={"system_message": "Hello."})
    assert world.system_prompt() == "User: hi\n\nAssistant: Hello.\n\n"


def test_unknown_template_lists_the_known():
    with pytest.raises(UserError, match="plain, rwkv_g1, rwkv_raven, rwkv_world, rwkv_world_v3"):
        load_template("chatml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seps": []}, "seps"),
        ({"seps": "\n"}, "seps"),
        ({"seps": ["a", "b", "c"]}, r"seps as \['a', 'b', 'c'\], expected at most 2 entries"),
        ({"roles": {"user": "U"}}, "lacks roles.assistant"),
        ({"stop_token_ids": [True]}, "stop_token_ids"),
        ({"messages": [["tool", "x"]]}, "messages"),
        ({"system_message": None}, "system_message"),
        ({"name": 3}, "name"),
    ],
)
def test_malformed_templates_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        template_of(load_template("plain").to_dict() | change)
    with pytest.raises(UserError, match="The prompt template lacks roles"):
        template_of({"name": "x", "seps": [""]})

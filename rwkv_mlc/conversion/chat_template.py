"""A prompt template in Jinja, for ``apply_chat_template`` of transformers: it renders what ``engine.templates`` feeds."""

from __future__ import annotations

import json
from typing import Any

from ..engine.templates import Template

FOLDED = r"""
{%- macro folded(text) -%}
  {%- set text = text.replace("\r\n", "\n").replace("\r", "\n").strip(" \t\n\x0b\x0c") -%}
  {%- for line in text.split("\n") if line.strip(" \t\x0b\x0c") -%}
    {{- line -}}{{- "" if loop.last else "\n" -}}
  {%- endfor -%}
{%- endmacro -%}"""
AS_IT_IS = """
{%- macro folded(text) -%}{{- text -}}{%- endmacro -%}"""


def chat_template(template: Template) -> str:
    """The template for messages of the roles ``system`` (the first), ``user``, ``assistant`` and, where there is a form for
    functions, ``tool``. With ``add_generation_prompt`` the text ends where the model goes on; ``think`` names a mode of a model
    that thinks first. Answers lose their thoughts, as in later turns of ours."""
    user, assistant = template.roles["user"] + template.role_content_sep, template.roles["assistant"]
    begin = _say(assistant + template.role_empty_sep)
    return "\n".join(
        [
            (FOLDED if template.seps[0].isspace() else AS_IT_IS).lstrip("\n"),
            *_modes(template),
            '{%- set told_system = messages and messages[0]["role"] == "system" -%}',
            f'{{%- set system = folded(messages[0]["content"] if told_system else {_text(template.system_message)}) -%}}',
            *_tools(template),
            f"{{%- if system -%}}{_framed(template.system_template, '{system_message}', 'system')}{{%- endif -%}}",
            _say(template.model_copy(update={"system_message": ""}).system_prompt()),
            "{%- for message in (messages[1:] if told_system else messages) -%}",
            f'  {{%- if message["role"] in {_text(["user", "tool"] if template.tool_use else ["user"])} -%}}',
            f"    {{%- set text = folded({_content(template)}) -%}}",
            *_suffix(template),
            "    " + _say(user),
            "    " + _framed(template.role_templates["user"], "{user_message}", "text"),
            "    " + _say(template.seps[0]),
            '  {%- elif message["role"] == "assistant" -%}',
            f"    {{%- set answer = {_answer(template)} -%}}",
            f'    {{%- set told = {_text(_before_answer(template))} ~ answer if answer else "" -%}}',
            f"    {begin}{{{{- told -}}}}",
            *_closing(template.seps[-1]),
            "  {%- else -%}",
            '    {{- raise_exception("this model has no form for messages of the role " ~ message["role"]) -}}',
            "  {%- endif -%}",
            "{%- endfor -%}",
            "{%- if add_generation_prompt -%}",
            f"  {begin}{'{{- openings[mode] -}}' if template.think else ''}",
            "{%- endif -%}\n",
        ]
    )


def _text(value: Any) -> str:
    """A literal of Jinja's."""
    return json.dumps(value, ensure_ascii=False)


def _say(text: str) -> str:
    return f"{{{{- {_text(text)} -}}}}" if text else ""


def _framed(frame: str, place: str, expression: str) -> str:
    before, _, after = frame.partition(place)
    return f"{_say(before)}{{{{- {expression} -}}}}{_say(after)}"


def _modes(template: Template) -> list[str]:
    """What each mode of thinking adds, and the mode that is asked for."""
    if template.think is None:
        return ['{%- if think -%}{{- raise_exception("this model has no think mode") -}}{%- endif -%}']
    modes = template.think.modes
    refusal = _text("think must be one of " + ", ".join(modes))
    return [
        f"{{%- set openings = {_text({name: mode.opening for name, mode in modes.items()})} -%}}",
        f"{{%- set suffixes = {_text({name: mode.user_suffix for name, mode in modes.items()})} -%}}",
        f"{{%- set mode = think or {_text(template.think.default)} -%}}",
        "{%- if mode not in openings -%}",
        f"  {{{{- raise_exception({refusal}) -}}}}",
        "{%- endif -%}",
    ]


def _tools(template: Template) -> list[str]:
    """The functions that the model may call, after the system message."""
    if template.tool_use is None:
        return ['{%- if tools -%}{{- raise_exception("this model has no form for tools") -}}{%- endif -%}']
    offer = f'{_text(template.tool_use.offer)}.replace("{{tools}}", tools | tojson)'
    return [
        "{%- if tools -%}",
        f'  {{%- set system = (system ~ "\\n" if system else "") ~ {offer} -%}}',
        "{%- endif -%}",
    ]


def _suffix(template: Template) -> list[str]:
    """What the message that is answered says of thinking."""
    if template.think is None:
        return []
    return [
        "    {%- if loop.last and add_generation_prompt -%}{%- set text = text ~ suffixes[mode] -%}{%- endif -%}",
    ]


def _content(template: Template) -> str:
    """What a message of the user says, or of a function."""
    if template.tool_use is None:
        return 'message["content"]'
    result = f'{_text(template.tool_use.result)}.replace("{{result}}", message["content"])'
    return f'{result} if message["role"] == "tool" else message["content"]'


def _before_answer(template: Template) -> str:
    """What of ``role_content_sep`` a turn leaves to the model."""
    return template.role_content_sep.removeprefix(template.role_empty_sep)


def _answer(template: Template) -> str:
    """Without the thoughts before it."""
    if template.think is None:
        return 'message["content"]'
    end = _text(template.think.end)
    return f'message["content"].split({end}, 1)[1].lstrip() if {end} in message["content"] else message["content"]'


def _closing(separator: str) -> list[str]:
    """The separator, but for its longest beginning that the answer ends with."""
    begun = [f"told.endswith({_text(separator[:n])})" for n in range(len(separator), 0, -1)]
    rests = [_text(separator[n:]) for n in range(len(separator), -1, -1)]
    choice = " ".join(f"{rest} if {ends} else" for rest, ends in zip(rests, begun))
    return [f"    {{{{- {choice} {rests[-1]} -}}}}"]

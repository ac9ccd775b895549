"""A prompt template in Jinja, for ``apply_chat_template`` of transformers: it renders what ``engine.templates`` feeds."""

from __future__ import annotations

import json

from ..engine.templates import Template

FOLDED = """
{%- macro folded(text) -%}
  {%- set text = text.replace("\\r\\n", "\\n").replace("\\r", "\\n").strip(" \\t\\n\\x0b\\x0c") -%}
  {%- for line in text.split("\\n") if line.strip(" \\t\\x0b\\x0c") -%}
    {{- line -}}
    {%- if not loop.last -%}{{- "\\n" -}}{%- endif -%}
  {%- endfor -%}
{%- endmacro -%}"""
AS_IT_IS = """
{%- macro folded(text) -%}{{- text -}}{%- endmacro -%}"""


def chat_template(template: Template) -> str:
    """The template for messages of the roles ``system`` (the first), ``user``, ``assistant`` and, where there is a form for
    functions, ``tool``. With ``add_generation_prompt`` the text ends where the model goes on; ``think`` names a mode of a model
    that thinks first. Answers lose their thoughts, as in later turns of ours."""
    user, assistant = template.roles["user"], template.roles["assistant"]
    modes = dict(template.think.modes) if template.think else {}
    between = template.role_content_sep
    turns = [
        FOLDED if template.seps[0].isspace() else AS_IT_IS,
        _set("openings", {name: mode.opening for name, mode in modes.items()}),
        _set("suffixes", {name: mode.user_suffix for name, mode in modes.items()}),
        _set_expression("think", f"think | default({_text(template.think.default if template.think else '')}, true)"),
        _set_expression("has_system", 'messages and messages[0]["role"] == "system"'),
        _set_expression(
            "system", f'folded(messages[0]["content"]) if has_system else folded({_text(template.system_message)})'
        ),
        _offer(template),
        '\n{%- if openings and think not in openings -%}{{- raise_exception("think must be one of " ~ openings | join(", ")) -}}'
        "{%- endif -%}",
        f"\n{{%- if system -%}}{{{{- {_text(template.system_template)}.replace({_text('{system_message}')}, system) -}}}}"
        "{%- endif -%}",
        _say("".join(template._message(role, content) for role, content in template.messages)),
        "\n{%- for message in messages[1:] if has_system else messages -%}",
        f'\n  {{%- if message["role"] == "user"{_or_tool(template)} -%}}',
        _say(user + between),
        "{%- set text -%}" + _framed(template.role_templates["user"], "{user_message}", _user_text(template)),
        "{%- endset -%}{{- text -}}",
        '{%- if loop.last and add_generation_prompt -%}{{- suffixes.get(think, "") -}}{%- endif -%}',
        _say(template.seps[0]),
        '\n  {%- elif message["role"] == "assistant" -%}',
        _set_expression("answer", _answer(template)),
        _say(assistant + template.role_empty_sep),
        f"{{%- if answer -%}}{{{{- {_text(template._before_answer)} ~ answer -}}}}{{%- endif -%}}",
        _closing(template),
        '\n  {%- else -%}{{- raise_exception("there is no role " ~ message["role"] ~ " here") -}}{%- endif -%}',
        "\n{%- endfor -%}",
        "\n{%- if add_generation_prompt -%}" + _say(assistant + template.role_empty_sep),
        '{{- openings.get(think, "") -}}{%- endif -%}\n',
    ]
    return "".join(turns).lstrip("\n")


def _text(text: str) -> str:
    """A literal of Jinja's."""
    return json.dumps(text)


def _set(name: str, value: dict[str, str]) -> str:
    return _set_expression(name, json.dumps(value))


def _set_expression(name: str, expression: str) -> str:
    return f"\n{{%- set {name} = {expression} -%}}"


def _say(text: str) -> str:
    return f"{{{{- {_text(text)} -}}}}" if text else ""


def _framed(frame: str, place: str, expression: str) -> str:
    before, _, after = frame.partition(place)
    return _say(before) + f"{{{{- {expression} -}}}}" + _say(after)


def _offer(template: Template) -> str:
    """What is said of functions that the model may call."""
    if template.tool_use is None:
        return '\n{%- if tools -%}{{- raise_exception("this model has no form for tools") -}}{%- endif -%}'
    offer = f"{_text(template.tool_use.offer)}.replace({_text('{tools}')}, tools | tojson)"
    joined = f'(system ~ "\\n" if system else "") ~ {offer}'
    return f"\n{{%- if tools -%}}{{%- set system = {joined} -%}}{{%- endif -%}}"


def _or_tool(template: Template) -> str:
    return ' or message["role"] == "tool"' if template.tool_use else ""


def _user_text(template: Template) -> str:
    if template.tool_use is None:
        return 'folded(message["content"])'
    result = f'{_text(template.tool_use.result)}.replace({_text("{result}")}, message["content"])'
    return f'folded({result} if message["role"] == "tool" else message["content"])'


def _answer(template: Template) -> str:
    """Without the thoughts before it."""
    if template.think is None:
        return 'message["content"]'
    end = _text(template.think.end)
    return f'message["content"].split({end}, 1)[1].lstrip() if {end} in message["content"] else message["content"]'


def _closing(template: Template) -> str:
    """The separator, but for its longest beginning that the answer ends with."""
    separator, before = template.seps[-1], _text(template._before_answer)
    told = f'({before} ~ answer if answer else "")'
    lines = [
        f'{{%- {"if" if n == len(separator) else "elif"} {told}.endswith({_text(separator[:n])}) -%}}{_say(separator[n:])}'
        for n in range(len(separator), 0, -1)
    ]
    return f"{''.join(lines)}{{%- else -%}}{_say(separator)}{{%- endif -%}}"

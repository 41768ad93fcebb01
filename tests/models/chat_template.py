"""The ChatML template of our test models, as Jinja and as the text it must render to.

Every tag strips the whitespace around it and every newline of the prompt is written inside an
expression, so the prompt does not depend on ``trim_blocks`` or ``lstrip_blocks``. A trained model
is sensitive to each of these newlines: a renderer that adds or loses one gets wrong answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

CHATML: Final = "".join(
    line.strip()
    for line in r"""
{%- if messages and messages[0].role == 'system' -%}
  {%- set system = messages[0].content -%}
  {%- set turns = messages[1:] -%}
{%- else -%}
  {%- set system = '' -%}
  {%- set turns = messages -%}
{%- endif -%}
{%- if tools -%}
  {{- '<|im_start|>system\n' -}}
  {%- if system -%}{{- system + '\n\n' -}}{%- endif -%}
  {{- 'You may call these functions:\n<tools>\n' -}}
  {%- for tool in tools -%}{{- tool | tojson -}}{{- '\n' -}}{%- endfor -%}
  {{- '</tools>\nTo call one, answer with its name and arguments as JSON inside <tool_call></tool_call>.<|im_end|>\n' -}}
{%- elif system -%}
  {{- '<|im_start|>system\n' + system + '<|im_end|>\n' -}}
{%- endif -%}
{%- for turn in turns -%}
  {%- if turn.role == 'tool' -%}
    {{- '<|im_start|>user\n<tool_response>\n' + turn.content + '\n</tool_response><|im_end|>\n' -}}
  {%- else -%}
    {{- '<|im_start|>' + turn.role + '\n' + (turn.content or '') -}}
    {%- if turn.tool_calls -%}
      {%- for call in turn.tool_calls -%}
        {%- if turn.content or not loop.first -%}{{- '\n' -}}{%- endif -%}
        {{- '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' -}}
        {{- call.function.arguments | tojson -}}
        {{- '}\n</tool_call>' -}}
      {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
""".splitlines()  # noqa: E501  (one prompt line stays one line)
)


def render_chat(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    answer_next: bool = False,
) -> str:
    """What ``CHATML`` renders to, written out by hand as an independent check."""
    parts: list[str] = []
    system = ""
    turns = list(messages)
    if turns and turns[0]["role"] == "system":
        system = turns.pop(0)["content"]
    if tools:
        listed = "".join(json.dumps(tool, ensure_ascii=False) + "\n" for tool in tools)
        parts.append(
            "<|im_start|>system\n"
            + (system + "\n\n" if system else "")
            + "You may call these functions:\n<tools>\n"
            + listed
            + "</tools>\nTo call one, answer with its name and arguments as JSON "
            "inside <tool_call></tool_call>.<|im_end|>\n"
        )
    elif system:
        parts.append(f"<|im_start|>system\n{system}<|im_end|>\n")
    for turn in turns:
        content = turn.get("content") or ""
        if turn["role"] == "tool":
            body = f"<|im_start|>user\n<tool_response>\n{content}\n</tool_response>"
        else:
            calls = "\n".join(
                f'<tool_call>\n{{"name": "{call["function"]["name"]}", "arguments": '
                f"{json.dumps(call['function']['arguments'], ensure_ascii=False)}}}\n</tool_call>"
                for call in turn.get("tool_calls") or ()
            )
            between = "\n" if content and calls else ""
            body = f"<|im_start|>{turn['role']}\n{content}{between}{calls}"
        parts.append(f"{body}<|im_end|>\n")
    if answer_next:
        parts.append("<|im_start|>assistant\n")
    return "".join(parts)

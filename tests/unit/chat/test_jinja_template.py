"""GGUF chat templates in the sandbox."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import pytest

from agent.inference.chat.conversation import Conversation
from agent.inference.chat.errors import TemplateError, TemplateLimit
from agent.inference.chat.jinja_template import compile_jinja
from agent.inference.request import Message, ToolCall

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
USER = Message(role="user", content="hi")
CALL = Message(
    role="assistant",
    tool_calls=(ToolCall(name="f", arguments={"a": "<é>"}, id="call_12345678"),),
)
RESULT = Message(role="tool", content="done", tool_name="f", tool_call_id="call_12345678")


def render(source: str, *messages: Message, **changes: Any) -> str:
    conversation = Conversation(messages=messages or (USER,), now=NOW, **changes)
    return compile_jinja(source).render(conversation)


def test_blocks_are_trimmed_and_loops_controlled() -> None:
    source = (
        "{% for n in range(5) %}\n    {% if n == 1 %}{% continue %}{% endif %}\n"
        "    {% if n == 3 %}{% break %}{% endif %}\n{{ n }}{% endfor %}"
    )
    assert render(source) == "02"


def test_the_generation_tag_means_nothing() -> None:
    assert render("{% generation %}{{ messages[0].content }}{% endgeneration %}") == "hi"


def test_lists_may_be_appended_to() -> None:
    source = "{% set l = [] %}{% set _ = l.append('x') %}{% do l.append('y') %}{{ l | join }}"
    assert render(source) == "xy"


def test_json_is_neither_escaped_for_html_nor_for_ascii() -> None:
    source = "{{ messages[1].tool_calls[0].function.arguments | tojson }}"
    assert render(source, USER, CALL) == '{"a": "<é>"}'
    assert render("{{ {'b': 1, 'a': 2} | tojson(indent=2) }}") == '{\n  "b": 1,\n  "a": 2\n}'
    assert render("{{ ('{\"a\": 1}' | from_json).a }}{{ from_json('[2]')[0] }}") == "12"


def test_arguments_are_a_mapping_and_content_is_never_none() -> None:
    source = "{{ messages[1].content is none }}{{ messages[1].tool_calls[0].function.arguments.a }}"
    assert render(source, USER, CALL) == "False<é>"


def test_tools_are_undefined_unless_given() -> None:
    assert render("{{ tools is defined }}") == "False"
    assert render("{{ tools is defined }}", tools=({"type": "function"},)) == "True"


def test_markers_date_and_thinking_are_available() -> None:
    source = "{{ bos_token }}{{ eos_token }}{{ strftime_now('%d %b %Y') }}"
    assert render(source, bos_text="<s>", eos_text="</s>") == "<s></s>01 Mar 2026"
    assert render("{{ enable_thinking is defined }}") == "False"
    assert render("{{ enable_thinking }}", think=False) == "False"


def test_the_developer_role_becomes_system() -> None:
    assert (
        render("{{ messages[0].role }}", Message(role="developer", content="x"), USER) == "system"
    )


def test_a_last_assistant_message_begins_the_answer() -> None:
    source = (
        "{% for m in messages %}{{ m.role }};{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    assert render(source, USER, Message(role="assistant", content="Sure")) == "user;>Sure"


NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('must alternate') }}{% endif %}{{ m.role }}:{{ m.content }};{% endfor %}"
)


def test_a_system_message_is_folded_where_the_template_refuses_it() -> None:
    assert render(NO_SYSTEM, Message(role="system", content="S"), USER) == "user:S\n\nhi;"


def test_neighbours_are_merged_where_the_template_insists_on_turns() -> None:
    system = Message(role="system", content="S")
    assert render(NO_SYSTEM, system, USER, USER) == "user:S\n\nhi\n\nhi;"


def test_content_becomes_typed_parts_where_the_template_wants_them() -> None:
    source = (
        "{% for m in messages %}{% if m.content is string %}{{ raise_exception('parts') }}"
        "{% endif %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
    )
    assert render(source) == "hi"


def test_ids_are_shortened_alike_where_the_template_counts_them() -> None:
    source = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}{% if c.id | length != 9 %}"
        "{{ raise_exception('id') }}{% endif %}{{ c.id }}={% endfor %}"
        "{% if m.tool_call_id %}{{ m.tool_call_id }}{% endif %}{% endfor %}"
    )
    first, _, second = render(source, USER, CALL, RESULT).partition("=")
    assert first == second
    assert len(first) == 9
    assert first.isalnum()


def test_tool_use_is_told_in_words_where_the_template_knows_no_tools() -> None:
    rendered = render(NO_SYSTEM, USER, CALL, RESULT, USER)
    assert rendered == (
        'user:hi;assistant:{"name": "f", "arguments": {"a": "<é>"}};user:done\n\nhi;'
    )


def test_a_refusal_of_every_shape_gives_the_first_reason() -> None:
    with pytest.raises(TemplateError, match="never"):
        render("{{ raise_exception('never') }}")


@pytest.mark.parametrize(
    ("source", "line"), [("a\n{% if %}", 2), ("{{ x", 1), ("{% nosuchtag %}", 1)]
)
def test_a_template_that_cannot_be_read_names_the_line(source: str, line: int) -> None:
    with pytest.raises(TemplateError) as caught:
        compile_jinja(source)
    assert caught.value.line == line


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ range.__init__.__globals__ }}",
        "{{ self.__init__ }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ (messages | map(attribute='__class__') | list)[0].mro() }}",
    ],
)
def test_the_sandbox_does_not_give_pythons_insides(source: str) -> None:
    try:
        rendered = render(source)
    except TemplateError:
        return
    assert "class" not in rendered
    assert "object at" not in rendered


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
        "{% set r = range(9999) | list %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}",
        "{{ range(1000000000) | list }}",
        "{{ 'a' * 1000000000000 }}",
        "{{ [0] * 1000000000000 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ 'a'.ljust(1000000000000) }}",
        "{{ 'a' | center(1000000000000) }}",
        "{{ 'a' | indent(1000000000000, true) }}",
        "{{ '%1000000000000d' % 1 }}",
        "{{ '%1000000000000d' | format(1) }}",
        "{{ '{:1000000000000}'.format(1) }}",
        "{% set n = namespace(x='aaaaaaaaaa') %}"
        "{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{% set n = namespace(x='aaaaaaaaaa') %}"
        "{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "{% set n = namespace(x='aaaaaaaaaa') %}"
        "{% for i in range(99) %}{% set n.x = n.x.replace('a', n.x) %}{% endfor %}",
        "{% set n = namespace(x='aaaaaaaaaa') %}"
        "{% for i in range(99) %}{% set n.x = [n.x, n.x] | join %}{% endfor %}",
        "{% set n = namespace(x=[1]) %}"
        "{% for i in range(30) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
        "{% set n = namespace(x=[1]) %}"
        "{% for i in range(30) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x | tojson }}",
        "{% set n = namespace(x=[1]) %}"
        "{% for i in range(30) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x | string }}",
        "{% set b = 'ab' * 500000 %}{{ b.join(range(9999)) }}",
        "{% set b = 'ab' * 500000 %}{{ range(9999) | join(b) }}",
        "{% set b = 'ab' * 500000 %}{{ b.join(range(9999) | map('string')) }}",
        "{% set b = 'ab' * 50000 %}{{ b.replace('a', b) }}",
        "{% set b = 'ab' * 50000 %}{{ b | replace('a', b) }}",
        "{% set b = 'ab' * 500000 %}{{ ('{0}' * 90000).format(b) }}",
        "{% set b = 'ab' * 500000 %}{{ ('%(a)s' * 90000) % {'a': b} }}",
        "{% set b = 'ab' * 500000 %}{{ ('%(a)s' * 90000) | format(a=b) }}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for i in range(999) %}{{ 'a' * 100000 }}{% endfor %}" * 9,
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
        "x" * (1 << 21),
    ],
)
def test_a_hostile_template_is_stopped_soon(source: str) -> None:
    started = time.perf_counter()
    with pytest.raises(TemplateError):
        render(source)
    assert time.perf_counter() - started < 3


def test_an_ordinary_long_conversation_stays_within_the_limits() -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ '<u>' + m.content | trim ~ '</u>' }}"
        "{% else %}{{ '<a>' + m['content'].strip().split('</think>')[-1] + '</a>' }}{% endif %}"
        "{% endfor %}"
    )
    messages = [
        Message(role=("user", "assistant")[n % 2], content="word " * 500) for n in range(2001)
    ]
    assert len(render(source, *messages)) > 5_000_000 * 0.9


def test_limits_are_their_own_error() -> None:
    with pytest.raises(TemplateLimit):
        render("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}")

"""The Go template subset: language, Ollama's rules, limits."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import pytest

from agent.inference.chat.conversation import Conversation
from agent.inference.chat.errors import TemplateError, TemplateLimit
from agent.inference.chat.go_template import TemplateValues, parse_go_template
from agent.inference.chat.go_template.conversation import collate
from agent.inference.chat.go_template.evaluator import Evaluator
from agent.inference.chat.go_template.parser import parse_document
from agent.inference.request import Message, ToolCall

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "tells <it>",
        "parameters": {
            "type": "object",
            "required": ["city"],
            "properties": {
                "zone": {"type": ["string", "null"], "description": "z"},
                "city": {"type": "string", "description": "c", "enum": ["a", "b"]},
            },
        },
    },
}


def run(source: str, data: Any = None, steps: int = 10_000) -> str:
    document = parse_document(source)
    return Evaluator(document.defined, NOW, steps).run(document.root, data)


def chat(source: str, *messages: Message, **changes: Any) -> str:
    conversation = Conversation(messages=messages, now=NOW, **changes)
    return parse_go_template(source).render(conversation)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("plain", "plain"),
        ("a {{- 1 }} b", "a1 b"),
        ("a {{ 1 -}} \n b", "a 1b"),
        ("a {{- /* note */ -}} b", "ab"),
        ("a{{/* note */}}b", "ab"),
        ("{{ -1 }}", "-1"),
        ("{{ 0x10 }} {{ 1_000 }} {{ 1.50 }} {{ 'a' }}", "16 1000 1.5 97"),
        (r'{{ "q\"\n\u00e9" }}{{ `raw\n` }}', 'q"\né' + "raw\\n"),
        ("{{ .name }} {{ .map.key }} {{ .list }} {{ .map }}", "Ann v [1 2] map[key:v]"),
        ("{{ .missing }}", "<no value>"),
        ("{{ if .missing }}a{{ else }}b{{ end }}", "b"),
        ("{{ if .no }}a{{ else if .yes }}b{{ else }}c{{ end }}", "b"),
        ("{{ with .name }}{{ . }}{{ else }}none{{ end }}", "Ann"),
        ("{{ with $x := .name }}{{ $x }}{{ end }}", "Ann"),
        ("{{ with .no }}a{{ else with .name }}b{{ . }}{{ end }}", "bAnn"),
        ("{{ range .list }}<{{ . }}>{{ end }}", "<1><2>"),
        ("{{ range $i, $v := .list }}{{ $i }}={{ $v }},{{ end }}", "0=1,1=2,"),
        ("{{ range $k, $v := .sorted }}{{ $k }}{{ $v }}{{ end }}", "a2b1"),
        ("{{ range .none }}a{{ else }}empty{{ end }}", "empty"),
        ("{{ range 3 }}{{ . }}{{ end }}", "012"),
        ("{{ range .list }}{{ if eq . 2 }}{{ break }}{{ end }}{{ . }}{{ end }}", "1"),
        ("{{ range .list }}{{ if eq . 1 }}{{ continue }}{{ end }}{{ . }}{{ end }}", "2"),
        ("{{ $x := 1 }}{{ range .list }}{{ $x = . }}{{ end }}{{ $x }}", "2"),
        ("{{ $x := 1 }}{{ if true }}{{ $x := 2 }}{{ end }}{{ $x }}", "1"),
        ("{{ range .list }}{{ $.name }}{{ end }}", "AnnAnn"),
        ('{{ define "t" }}[{{ . }}]{{ end }}{{ template "t" .name }}', "[Ann]"),
        ('{{ block "t" .name }}<{{ . }}>{{ end }}', "<Ann>"),
        ("{{ (index .list 1) }}{{ index .map `key` }}", "2v"),
        ("{{ (index .people 0).name }}", "Bo"),
        ('{{ slice "hello" 1 3 }} {{ slice .list 1 }}', "el [2]"),
        ('{{ len "é" }}{{ len .list }}{{ len .map }}', "221"),
        ('{{ .name | printf "%s-%d-%v-%q" "a" 3 true }}', "a-3-true-\"Ann\""),
        ('{{ printf "%05d|%-4s|%4s|%.2f|%t|%%|%x" 42 "a" "b" 1.5 true 255 }}',
         "00042|a   |   b|1.50|true|%|ff"),
        ('{{ print 1 2 "a" "b" 3 }}{{ println "x" 1 }}', "1 2ab3x 1\n"),
        ("{{ and .name .no }}|{{ or .no .name }}|{{ not .no }}", "false|Ann|true"),
        ("{{ or .yes (index .list 99) }}", "true"),
        ("{{ and .no (index .list 99) }}", "false"),
        ("{{ eq 1 2 1 }}{{ ne `a` `b` }}{{ lt 1 2 }}{{ le 2 2 }}{{ gt 1.5 1.0 }}{{ ge `b` `a` }}",
         "truetruetruetruetruetrue"),
        ("{{ json .sorted }}", '{"a":2,"b":1}'),
        ('{{ json "<&>" }}', '"\\u003c\\u0026\\u003e"'),
        ("{{ currentDate }} {{ yesterdayDate }}", "2026-03-01 2026-02-28"),
        ("{{ html `<a href=\"x\">` }}", "&lt;a href=&#34;x&#34;&gt;"),
        ("{{ urlquery `a b&c` }}", "a+b%26c"),
        ("{{ if eq .name `Ann` }}\n{{- /* */ -}} yes {{ end }}", "yes "),
    ],
)  # fmt: skip
def test_the_language(source: str, expected: str) -> None:
    data = {
        "name": "Ann",
        "yes": True,
        "no": False,
        "list": [1, 2],
        "none": [],
        "map": {"key": "v"},
        "sorted": {"b": 1, "a": 2},
        "people": [{"name": "Bo"}],
    }
    assert run(source, data) == expected


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("\n{{ if }}", 2),
        ("{{ if .a }}\n", 1),
        ("a\n\n{{ end }}", 3),
        ("{{ .a", 1),
        ("{{ nofunction 1 }}", 1),
        ("{{ $x }}", 1),
        ("{{ if true }}{{ $x := 1 }}{{ end }}\n{{ $x }}", 2),
        ("{{ break }}", 1),
        ("\n{{ /* open }}", 2),
        ('{{ "open }}', 1),
        ("{{ 1 2 }}", 1),
        ("{{ .a | 1 }}", 1),
        ("{{ (1 }}", 1),
        ("{{ ! }}", 1),
        ("{{ else }}", 1),
        ("{{ template }}", 1),
        ('{{ "\\z" }}', 1),
    ],
)
def test_mistakes_are_found_when_read_and_name_the_line(source: str, line: int) -> None:
    with pytest.raises(TemplateError) as caught:
        parse_go_template(source)
    assert caught.value.line == line


@pytest.mark.parametrize(
    "source",
    [
        "{{ index .list 9 }}",
        "{{ .name.field }}",
        '{{ eq 1 "a" }}',
        "{{ lt .list 1 }}",
        '{{ template "nothing" }}',
        "{{ range .name }}{{ end }}",
        "{{ call .name }}",
    ],
)
def test_mistakes_while_running_are_errors(source: str) -> None:
    with pytest.raises(TemplateError):
        run(source, {"list": [1], "name": "Ann"})


@pytest.mark.parametrize(
    "source",
    [
        "{{ range 1000000000 }}{{ end }}",
        "{{ range 9000 }}{{ range 9000 }}{{ end }}{{ end }}",
        '{{ define "t" }}{{ template "t" }}{{ end }}{{ template "t" }}',
        '{{ define "t" }}{{ template "t" }}{{ template "t" }}{{ end }}{{ template "t" }}',
        '{{ printf "%999999999d" 1 }}',
        '{{ printf "%.999999999f" 1.0 }}',
        '{{ $x := "aaaaaaaaaaaaaaaa" }}{{ range 100 }}{{ $x = print $x $x }}{{ end }}',
        "{{ if true }}" * 100 + "{{ end }}" * 100,
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ if true }}" + "{{ else if true }}" * 5000 + "{{ end }}",
        "x" * (1 << 21),
    ],
)  # fmt: skip
def test_a_hostile_template_is_stopped_soon(source: str) -> None:
    started = time.perf_counter()
    with pytest.raises(TemplateLimit):
        chat(source, Message(role="user", content="a"))
    assert time.perf_counter() - started < 3


def test_names_used_tell_the_capabilities() -> None:
    template = parse_go_template(
        "{{ if .Suffix }}{{ .Prompt }}{{ else }}{{ range $.Tools }}{{ .Function.Name }}{{ end }}"
        "{{ (index .Messages 0).Thinking }}{{ end }}"
    )
    assert template.variables_used() >= {
        "suffix", "prompt", "tools", "function", "name", "messages", "thinking",
    }  # fmt: skip


def test_a_template_with_messages_is_run_once_over_all() -> None:
    source = "{{ .System }}|{{ range .Messages }}{{ .Role }}={{ .Content }};{{ end }}"
    rendered = chat(
        source,
        Message(role="system", content="S"),
        Message(role="user", content="a"),
        Message(role="user", content="b"),
        Message(role="assistant", content="c"),
    )
    assert rendered == "S|system=S;user=a\n\nb;assistant=c;"


LEGACY = "{{ if .System }}S:{{ .System }} {{ end }}U:{{ .Prompt }} A:{{ .Response }}<end>"


def test_an_older_template_is_run_turn_by_turn_and_stops_where_the_model_goes_on() -> None:
    rendered = chat(
        LEGACY,
        Message(role="system", content="s"),
        Message(role="user", content="1"),
        Message(role="assistant", content="2"),
        Message(role="user", content="3"),
    )
    assert rendered == "S:s U:1 A:2<end>U:3 A:"


def test_a_begun_answer_is_left_open() -> None:
    rendered = chat(
        LEGACY, Message(role="user", content="1"), Message(role="assistant", content="2")
    )
    assert rendered == "U:1 A:2"


def test_the_cut_reaches_into_conditions() -> None:
    source = "U:{{ .Prompt }}{{ if .Response }} A:{{ .Response }}<end>{{ end }} tail"
    user, assistant = Message(role="user", content="1"), Message(role="assistant", content="2")
    assert chat(source, user, assistant) == "U:1 A:2"
    assert chat(source, user, assistant, user) == "U:1 A:2<end> tailU:1"


def test_a_template_that_forgets_the_answer_gets_it_appended() -> None:
    user, assistant = Message(role="user", content="1"), Message(role="assistant", content="2")
    assert chat("Q:{{ .Prompt }} ", user, assistant, user) == "Q:1 2Q:1 "


def test_a_system_message_after_an_answer_begins_a_new_turn() -> None:
    rendered = chat(
        LEGACY,
        Message(role="user", content="1"),
        Message(role="assistant", content="2"),
        Message(role="system", content="s"),
        Message(role="user", content="3"),
    )
    assert rendered == "U:1 A:2<end>S:s U:3 A:"


def test_tool_results_are_not_merged() -> None:
    tool = Message(role="tool", content="x")
    assert collate([tool, tool]) == ("", (tool, tool))


def test_all_system_texts_are_one() -> None:
    system = Message(role="system", content="a")
    other = Message(role="system", content="b")
    assert collate([system, Message(role="user", content="u"), other])[0] == "a\n\nb"


def test_tools_and_arguments_print_as_json_in_the_order_written() -> None:
    call = ToolCall(name="weather", arguments={"z": 1, "a": [True, None]}, id="c1")
    rendered = chat(
        "{{ range .Messages }}{{ range .ToolCalls }}{{ .ID }}{{ .Function.Name }}"
        "{{ .Function.Arguments }}{{ range $k, $v := .Function.Arguments }}{{ $k }}{{ end }}"
        "{{ end }}{{ end }}{{ .Tools }}",
        Message(role="assistant", tool_calls=(call,)),
        tools=({"type": "function"},),
    )
    assert rendered == 'c1weather{"z":1,"a":[true,null]}za[{"type":"function"}]'


def test_parts_of_a_tool_can_be_walked() -> None:
    rendered = chat(
        "{{ range .Messages }}{{ end }}{{ range .Tools }}{{ .Function.Description }}"
        "{{ range $n, $p := .Function.Parameters.Properties }} {{ $n }}:{{ $p.Type }}:"
        "{{ toTypeScriptType $p }}:{{ $p.Enum }}{{ end }} {{ .Function.Parameters.Required }}"
        "{{ end }}",
        tools=(TOOL,),
    )
    assert rendered == (
        'tells <it> zone:["string","null"]:string | null:[] city:string:string:[a b] [city]'
    )


def test_thinking_is_told_as_asked() -> None:
    source = "{{ range .Messages }}{{ end }}{{ .Think }}{{ .IsThinkSet }}{{ .ThinkLevel }}"
    assert chat(source) == "falsefalse"
    assert chat(source, think=False) == "falsetrue"
    assert chat(source, think=True, think_level="high") == "truetruehigh"


def test_infill_gets_prompt_and_suffix() -> None:
    template = parse_go_template("<P>{{ .Prompt }}<S>{{ .Suffix }}<M>{{ .Response }}")
    values = TemplateValues(prompt="a", suffix="b")
    assert template.render_infill(values, NOW) == "<P>a<S>b<M>"

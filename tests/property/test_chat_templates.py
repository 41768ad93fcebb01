"""Templates: whatever is thrown at them, they answer with text or their own error."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.inference.chat.conversation import Conversation
from agent.inference.chat.errors import TemplateError
from agent.inference.chat.go_template import parse_go_template
from agent.inference.chat.go_template.conversation import collate
from agent.inference.chat.jinja_template import compile_jinja
from agent.inference.request import Message

NOW = datetime(2026, 3, 1, tzinfo=UTC)
ROLES = st.sampled_from(["system", "user", "assistant", "tool"])
MESSAGES = st.lists(
    st.builds(
        lambda role, content: Message(role=role, content=content), ROLES, st.text(max_size=8)
    ),
    max_size=8,
)
GO_PARTS = st.sampled_from(
    [
        "{{", "}}", "{{-", "-}}", " ", "\n", ".", ".Messages", ".Content", "$", "$x", ":=", "=",
        "|", "(", ")", ",", "range", "if", "else", "end", "with", "define", "template", "block",
        "break", "continue", '"t"', "`r", "1", "-1", "1.5", "0x", "nil", "true", "eq", "index",
        "len", "printf", "/*", "*/", "text", "'", "\\",
    ]
)  # fmt: skip
JINJA_PARTS = st.sampled_from(
    [
        "{{", "}}", "{%", "%}", "{#", "#}", "-", " ", "messages", "[0]", ".content", "for", "in",
        "m", "endfor", "if", "endif", "set", "=", "macro", "f", "(", ")", "endmacro", "~", "+", "*",
        "|", "tojson", "join", "1", "'a'", "namespace", "loop", "break", "generation", "range",
    ]
)  # fmt: skip


def conversation(messages: list[Message]) -> Conversation:
    return Conversation(messages=tuple(messages), now=NOW)


@given(st.lists(GO_PARTS, max_size=30), MESSAGES)
@settings(max_examples=300, deadline=None)
def test_any_go_text_renders_or_raises_a_template_error(
    parts: list[str], messages: list[Message]
) -> None:
    try:
        rendered = parse_go_template("".join(parts)).render(conversation(messages))
    except TemplateError:
        return
    assert isinstance(rendered, str)


@given(st.lists(JINJA_PARTS, max_size=30), MESSAGES)
@settings(max_examples=300, deadline=None)
def test_any_jinja_text_renders_or_raises_a_template_error(
    parts: list[str], messages: list[Message]
) -> None:
    try:
        rendered = compile_jinja("".join(parts)).render(conversation(messages))
    except TemplateError:
        return
    assert isinstance(rendered, str)


@given(st.text(alphabet=st.characters(exclude_characters="{"), max_size=50))
def test_text_without_actions_is_itself(text: str) -> None:
    rendered = parse_go_template(text).render(conversation([]))
    assert rendered == text


@given(MESSAGES)
def test_collating_loses_no_words_and_leaves_no_equal_neighbours(messages: list[Message]) -> None:
    _, collated = collate(messages)
    for first, second in pairwise(collated):
        assert first.role != second.role or first.role == "tool"
    words = "\n\n".join(message.content for message in messages)
    kept = "\n\n".join(message.content for message in collated)
    assert kept == words


@given(MESSAGES)
def test_both_kinds_of_template_agree_on_a_plain_format(messages: list[Message]) -> None:
    _, collated = collate(messages)
    if collated and collated[-1].role == "assistant":
        collated = collated[:-1]
    go = "{{ range .Messages }}[{{ .Role }}]{{ .Content }}{{ end }}"
    jinja = "{% for m in messages %}{{ '[' + m.role + ']' + m.content }}{% endfor %}"
    ready = conversation(list(collated))
    assert parse_go_template(go).render(ready) == compile_jinja(jinja).render(ready)

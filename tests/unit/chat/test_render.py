"""Which template wins, and how messages and single prompts become text."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agent.inference.chat.errors import TemplateError
from agent.inference.chat.render import (
    RenderContext,
    begins_with_bos,
    chat_messages,
    choose_template,
    droppable_sizes,
    dropping,
    render_messages,
    render_text,
)
from agent.inference.errors import UnsupportedCapability
from agent.inference.request import ChatPrompt, Message, TextPrompt
from agent.models.installed import InstalledModel
from tests.unit.inference.scripted_runner import HEADER, MODEL

CONTEXT = RenderContext(now=datetime(2026, 3, 1, tzinfo=UTC), bos_text="<s>", eos_text="</s>")
USER = Message(role="user", content="u")
SYSTEM = Message(role="system", content="s")


def model(jinja: str | None = None, **changes: Any) -> InstalledModel:
    return replace(
        MODEL, weights_path=Path("/x"), header=replace(HEADER, chat_template=jinja), **changes
    )


def chosen(installed: InstalledModel, **preferences: Any) -> str:
    return render_messages(choose_template(installed, **preferences), (USER,), CONTEXT)


JINJA = "jinja"
LAYER = "layer{{ if .Prompt }}{{ end }}{{ .Response }}"


@pytest.mark.parametrize(
    ("changes", "preference", "winner"),
    [
        ({}, None, "jinja"),
        ({}, True, "layer"),
        ({}, False, "jinja"),
        ({"template_overridden": True}, None, "layer"),
        ({"template_overridden": True}, False, "jinja"),
        ({"template_source": "go"}, None, "layer"),
        ({"template_source": "go"}, False, "jinja"),
        ({"template_source": "jinja", "template_overridden": True}, None, "jinja"),
        ({"template_source": "jinja"}, True, "jinja"),
    ],
)
def test_the_template_follows_switch_override_and_preference(
    changes: dict[str, Any], preference: bool | None, winner: str
) -> None:
    assert chosen(model(JINJA, template=LAYER, **changes), go_template=preference) == winner


def test_the_requests_own_template_wins_over_all() -> None:
    installed = model(JINJA, template=LAYER, template_source="jinja")
    assert chosen(installed, requested="own{{ .Response }}", go_template=False) == "own"


def test_without_a_jinja_template_the_layer_is_used() -> None:
    assert chosen(model(None, template=LAYER, template_source="jinja")) == "layer"


def test_without_any_template_chatml_is_used() -> None:
    expected = "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n"
    assert chosen(model(None)) == expected
    assert chosen(model(None, template=LAYER), go_template=False) == expected


def test_a_broken_jinja_template_gives_way_to_the_layer() -> None:
    assert chosen(model("{% if", template=LAYER)) == "layer"
    with pytest.raises(TemplateError):
        choose_template(model("{% if"))


def test_the_models_system_leads_unless_the_request_has_one() -> None:
    seed = Message(role="user", content="seed")
    installed = model(system="own", messages=(seed,))
    own = Message(role="system", content="own")
    assert chat_messages(installed, ChatPrompt(messages=(USER,))) == (own, seed, USER)
    assert chat_messages(installed, ChatPrompt(messages=(SYSTEM, USER))) == (seed, SYSTEM, USER)


ECHO = "{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}"


def test_a_single_prompt_is_a_conversation() -> None:
    installed = model(ECHO, system="own", messages=(Message(role="user", content="seed"),))
    assert render_text(installed, TextPrompt(text="p"), CONTEXT) == "system=own;user=seed;user=p;"
    asked = TextPrompt(text="p", system="mine")
    assert render_text(installed, asked, CONTEXT) == "system=mine;user=seed;user=p;"
    continued = TextPrompt(text="p", context=(1, 2))
    assert render_text(installed, continued, CONTEXT) == "system=own;user=p;"
    assert render_text(installed, TextPrompt(text="p", raw=True), CONTEXT) == "p"


def test_infill_needs_a_layer_that_takes_a_suffix() -> None:
    prompt = TextPrompt(text="a", suffix="b")
    taking = "{{ if .Suffix }}<P>{{ .Prompt }}<S>{{ .Suffix }}<M>{{ end }}{{ .Response }}"
    assert render_text(model(JINJA, template=taking), prompt, CONTEXT) == "<P>a<S>b<M>"
    for installed in (model(JINJA), model(JINJA, template=LAYER)):
        with pytest.raises(UnsupportedCapability, match="insert"):
            render_text(installed, prompt, CONTEXT)
    with pytest.raises(UnsupportedCapability, match="insert"):
        render_text(model(JINJA, template=taking), prompt, replace(CONTEXT, go_template=False))


def test_dropping_spares_system_and_the_last() -> None:
    old, other = Message(role="user", content="old"), Message(role="assistant", content="ans")
    messages = (SYSTEM, old, SYSTEM, other, USER)
    assert droppable_sizes(messages) == (3, 3)
    assert dropping(messages, 0) == messages
    assert dropping(messages, 1) == (SYSTEM, SYSTEM, other, USER)
    assert dropping(messages, 9) == (SYSTEM, SYSTEM, USER)


def test_the_marker_is_recognised_only_when_there_is_one() -> None:
    assert begins_with_bos("<s>a", "<s>")
    assert not begins_with_bos("a", "<s>")
    assert not begins_with_bos("a", "")

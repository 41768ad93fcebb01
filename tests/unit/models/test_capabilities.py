"""Capabilities follow the template that speaks for the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.models.capabilities import find_capabilities
from agent.models.gguf import parse_bytes
from agent.models.gguf_summary import summarise
from agent.models.installed import GgufSummary
from tests.unit.models.ggufs import llama_file

GO_TOOLS = "{{ if .Tools }}{{ .Tools }}{{ end }}{{ .Prompt }}"


@pytest.fixture
def header(tmp_path: Path) -> GgufSummary:
    data = llama_file(tmp_path / "t.gguf")
    return replace(summarise(parse_bytes(data), len(data)), chat_template=None)


def found(header: GgufSummary, **settings: Any) -> set[str]:
    defaults: dict[str, Any] = {
        "template": None, "source": "auto", "overridden": False, "has_projector": False,
    }  # fmt: skip
    return set(find_capabilities(header, **(defaults | settings)))


def test_a_pooling_key_makes_an_embedding_model(header: GgufSummary) -> None:
    assert found(replace(header, pooling="mean"), template=GO_TOOLS) == {"embedding"}


def test_go_templates_show_tools_insert_and_thinking(header: GgufSummary) -> None:
    assert found(header, template=GO_TOOLS) == {"completion", "tools"}
    assert found(header, template="{{ .Prefix }}{{ .Suffix }}") == {"completion", "insert"}
    assert found(header, template="{{ $m.Thinking }}") == {"completion", "thinking"}
    assert found(header, template="text about .Tools and .Suffix") == {"completion"}


def test_jinja_templates_show_tools_and_thinking(header: GgufSummary) -> None:
    tools = replace(header, chat_template="{% if tools %}x{% endif %}")
    assert found(tools) == {"completion", "tools"}
    pair = replace(header, chat_template="<think>{{ x }}</think>")
    assert found(pair) == {"completion", "thinking"}
    split = replace(header, chat_template="{{ x.split('</think>')[-1] }}")
    assert found(split) == {"completion", "thinking"}


def test_the_switch_decides_which_template_counts(header: GgufSummary) -> None:
    both = replace(header, chat_template="plain")
    assert found(both, template=GO_TOOLS) == {"completion"}
    assert found(both, template=GO_TOOLS, overridden=True) == {"completion", "tools"}
    assert found(both, template=GO_TOOLS, source="go") == {"completion", "tools"}
    assert found(both, template=GO_TOOLS, source="jinja", overridden=True) == {"completion"}


def test_vision_needs_a_projector_whatever_is_claimed(header: GgufSummary) -> None:
    assert found(header, claimed=("vision", "tools")) == {"completion", "tools"}
    assert found(header, has_projector=True) == {"completion", "vision"}

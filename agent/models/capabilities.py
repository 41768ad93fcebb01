"""What a model can do, as clients see it in ``capabilities``. Pure.

A template's abilities are read from its text, as Ollama does; pictures and sound need a
projector that can be used, whatever the files claim.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final, Literal

from agent.models.installed import Capability, GgufSummary

TemplateSource = Literal["auto", "go", "jinja"]

_GO_ACTION: Final = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_CLAIMABLE: Final[frozenset[Capability]] = frozenset({"tools", "thinking", "insert"})


def effective_source(
    template: str | None, jinja: str | None, source: TemplateSource, *, overridden: bool
) -> Literal["go", "jinja"]:
    """Which template speaks for the model: the per-model switch, else a template of the user's
    own, else the file's Jinja text, else the TEMPLATE layer."""
    if source == "go" and template is not None:
        return "go"
    if source == "jinja" and jinja is not None:
        return "jinja"
    if template is not None and (overridden or jinja is None):
        return "go"
    return "jinja"


def find_capabilities(
    header: GgufSummary,
    *,
    template: str | None,
    source: TemplateSource,
    overridden: bool,
    has_projector: bool,
    claimed: Collection[str] = (),
) -> frozenset[Capability]:
    """``claimed`` are the config blob's own; they add abilities that templates do not show."""
    found: set[Capability] = set()
    if header.pooling != "unspecified":
        found.add("embedding")
        return frozenset(found)
    found.add("completion")
    jinja = header.chat_template
    speaker = effective_source(template, jinja, source, overridden=overridden)
    if speaker == "go":
        found |= _go_capabilities(template or "")
    else:
        found |= _jinja_capabilities(jinja or "")
        # A prompt with a suffix goes through the TEMPLATE layer even where chats do not.
        if template is not None and source != "jinja" and _mentions(template, "Suffix"):
            found.add("insert")
    if header.architecture in ("gptoss", "gpt-oss"):
        found.add("thinking")
    found.update(name for name in _CLAIMABLE if name in claimed)
    if has_projector:
        found.add("vision")
    return frozenset(found)


def _go_capabilities(template: str) -> set[Capability]:
    found: set[Capability] = set()
    if _mentions(template, "Tools"):
        found.add("tools")
    if _mentions(template, "Suffix"):
        found.add("insert")
    if _mentions(template, "Thinking"):
        found.add("thinking")
    return found


def _mentions(template: str, field: str) -> bool:
    """The template's actions use the field, not just its text."""
    wanted = re.compile(rf"\.{field}\b")
    return any(wanted.search(action) for action in _GO_ACTION.findall(template))


def _jinja_capabilities(template: str) -> set[Capability]:
    found: set[Capability] = set()
    if "tools" in template or "tool_call" in template:
        found.add("tools")
    splits = re.search(r"split\(\s*['\"]</think>['\"]\s*\)", template) is not None
    if splits or ("<think>" in template and "</think>" in template):
        found.add("thinking")
    return found

"""Which template a request gets, and the prompt text it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Final

from agent.inference.chat.conversation import Conversation
from agent.inference.chat.errors import TemplateError
from agent.inference.chat.go_template import GoTemplate, TemplateValues, parse_go_template
from agent.inference.chat.jinja_template import JinjaTemplate, compile_jinja
from agent.inference.errors import UnsupportedCapability
from agent.inference.request import ChatPrompt, JsonValue, Message, TextPrompt
from agent.models.installed import InstalledModel

CHATML: Final = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""For a model that brings no template at all."""
PARSED_LIMIT: Final = 32
"""Parsed Go templates kept."""

ChatTemplate = GoTemplate | JinjaTemplate

_parsed_go_template = lru_cache(maxsize=PARSED_LIMIT)(parse_go_template)


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderContext:
    """What rendering depends on beside the request: the clock, the loaded model's marker texts,
    and the node's preference (``go_template`` of the settings)."""

    now: datetime
    bos_text: str = ""
    eos_text: str = ""
    go_template: bool | None = None
    tools: tuple[JsonValue, ...] = ()
    think: bool | None = None
    think_level: str = ""


def choose_template(
    model: InstalledModel, *, requested: str | None = None, go_template: bool | None = None
) -> ChatTemplate:
    """The request's own template, else by the model's switch and the node's preference.

    Without a preference a TEMPLATE layer wins over the GGUF's Jinja template only when a user
    of this store set it. A Jinja template that cannot be compiled gives way to the layer.
    Raises TemplateError.
    """
    if requested:
        return _parsed_go_template(requested)
    layer = None if go_template is False else model.template
    own = model.header.chat_template
    prefers_layer = model.template_source == "go" or (
        model.template_source == "auto" and (model.template_overridden or go_template is True)
    )
    if layer and (prefers_layer or not own):
        return _parsed_go_template(layer)
    if not own:
        return compile_jinja(CHATML)
    try:
        return compile_jinja(own)
    except TemplateError:
        if not layer:
            raise
        return _parsed_go_template(layer)


def chat_messages(model: InstalledModel, prompt: ChatPrompt) -> tuple[Message, ...]:
    """The request's messages behind the model's MESSAGEs, led by its SYSTEM unless the request
    begins with a system message of its own."""
    messages = (*model.messages, *prompt.messages)
    begins_with_system = bool(prompt.messages) and prompt.messages[0].role == "system"
    if model.system and not begins_with_system:
        return (Message(role="system", content=model.system), *messages)
    return messages


def text_messages(model: InstalledModel, prompt: TextPrompt) -> tuple[Message, ...]:
    """A single prompt as a conversation; a continued one has had the model's MESSAGEs."""
    system = prompt.system or model.system
    return (
        *((Message(role="system", content=system),) if system else ()),
        *(() if prompt.context else model.messages),
        Message(role="user", content=prompt.text),
    )


def render_messages(
    template: ChatTemplate, messages: Sequence[Message], context: RenderContext
) -> str:
    """The prompt text of ``messages``. Raises TemplateError."""
    return template.render(
        Conversation(
            messages=tuple(messages),
            now=context.now,
            tools=context.tools,
            think=context.think,
            think_level=context.think_level,
            bos_text=context.bos_text,
            eos_text=context.eos_text,
        )
    )


def render_text(model: InstalledModel, prompt: TextPrompt, context: RenderContext) -> str:
    """The prompt text of a single prompt, earlier ``context`` tokens not included.

    Raises UnsupportedCapability when a suffix is given and no template layer takes one, and
    TemplateError.
    """
    if prompt.raw:
        return prompt.text
    if prompt.suffix:
        return _render_infill(model, prompt, context)
    template = choose_template(model, requested=prompt.template, go_template=context.go_template)
    return render_messages(template, text_messages(model, prompt), context)


def _render_infill(model: InstalledModel, prompt: TextPrompt, context: RenderContext) -> str:
    source = prompt.template or (None if context.go_template is False else model.template)
    template = _parsed_go_template(source) if source else None
    if template is None or "suffix" not in template.variables_used():
        raise UnsupportedCapability(model.name.full, "insert")
    values = TemplateValues(prompt=prompt.text, suffix=prompt.suffix)
    return template.render_infill(values, context.now)


def dropping(messages: Sequence[Message], count: int) -> tuple[Message, ...]:
    """``messages`` without the ``count`` oldest ones that may go: system messages and the last
    message always stay."""
    kept: list[Message] = []
    last = len(messages) - 1
    for position, message in enumerate(messages):
        if count > 0 and position != last and message.role != "system":
            count -= 1
            continue
        kept.append(message)
    return tuple(kept)


def droppable_sizes(messages: Sequence[Message]) -> tuple[int, ...]:
    """Characters of each message that ``dropping`` can take away, oldest first."""
    return tuple(len(message.content) for message in messages[:-1] if message.role != "system")


def begins_with_bos(text: str, bos_text: str) -> bool:
    """Whether the template wrote the beginning-of-sequence marker itself, so that the tokenizer
    must not add a second one."""
    return bool(bos_text) and text.startswith(bos_text)


def without_bos(text: str, bos_text: str) -> str:
    """``text`` as the continuation of an earlier prompt, which already has the marker."""
    return text.removeprefix(bos_text) if bos_text else text

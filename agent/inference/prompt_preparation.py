"""A request's prompt as tokens that fit, made with the loaded model's own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent.inference.chat.render import (
    RenderContext,
    begins_with_bos,
    chat_messages,
    choose_template,
    droppable_sizes,
    dropping,
    render_messages,
    render_text,
    without_bos,
)
from agent.inference.errors import InvalidRequest, PromptTooLong
from agent.inference.lease import Runner
from agent.inference.prompt_fitting import PROMPT_TOO_LONG, DropSearch, cut_middle
from agent.inference.request import ChatPrompt, GenerateRequest, TextPrompt
from agent.models.installed import InstalledModel


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedPrompt:
    """What is sent, and what had to go for it to fit."""

    tokens: tuple[int, ...]
    text: str
    """Without the text of an earlier ``context``."""
    dropped_messages: int = 0
    cut_tokens: int = 0


async def prepare_prompt(
    runner: Runner,
    model: InstalledModel,
    request: GenerateRequest,
    rendering: RenderContext,
    *,
    context_length: int,
    keep: int,
) -> PreparedPrompt:
    """Render, tokenise and fit the prompt of ``request``.

    ``keep`` tokens in front survive a cut, negative for all that fit. Raises PromptTooLong,
    TemplateError, InvalidRequest, UnsupportedCapability, RunnerDied.
    """
    match request.prompt:
        case ChatPrompt():
            prepared = await _prepare_chat(
                runner, model, request.prompt, rendering, context_length, request.truncate
            )
        case TextPrompt():
            prepared = await _prepare_text(runner, model, request.prompt, rendering)
    if not prepared.tokens:
        raise InvalidRequest("the prompt is empty")
    length = len(prepared.tokens)
    if length <= context_length - 1:
        return prepared
    if not request.shift:
        raise PromptTooLong(PROMPT_TOO_LONG)
    tokens = cut_middle(prepared.tokens, context=context_length, keep=keep)
    return PreparedPrompt(
        tokens=tokens,
        text=prepared.text,
        dropped_messages=prepared.dropped_messages,
        cut_tokens=length - len(tokens),
    )


async def _prepare_chat(
    runner: Runner,
    model: InstalledModel,
    prompt: ChatPrompt,
    rendering: RenderContext,
    context_length: int,
    truncate: bool,
) -> PreparedPrompt:
    template = choose_template(model, go_template=rendering.go_template)
    messages = chat_messages(model, prompt)
    limit = context_length - 1
    search = DropSearch(droppable_sizes(messages) if truncate else (), limit=limit)
    chosen: PreparedPrompt | None = None
    while (dropped := search.next_try()) is not None:
        text = render_messages(template, dropping(messages, dropped), rendering)
        tokens = await _tokenize(runner, text)
        search.record(dropped, len(tokens))
        if chosen is None or dropped == search.best:
            chosen = PreparedPrompt(tokens=tokens, text=text, dropped_messages=dropped)
    if chosen is None or chosen.dropped_messages != search.best:
        raise InvalidRequest("no messages to render")
    return chosen


async def _prepare_text(
    runner: Runner, model: InstalledModel, prompt: TextPrompt, rendering: RenderContext
) -> PreparedPrompt:
    text = render_text(model, prompt, rendering)
    if not prompt.context:
        return PreparedPrompt(tokens=await _tokenize(runner, text), text=text)
    check_context(prompt.context, runner.facts.vocabulary)
    text = without_bos(text, rendering.bos_text)
    tokens = await runner.tokenize(text, add_special=False)
    return PreparedPrompt(tokens=(*prompt.context, *tokens), text=text)


async def _tokenize(runner: Runner, text: str) -> tuple[int, ...]:
    facts = runner.facts
    # A template that writes the marker itself must not get a second one from the tokenizer.
    doubled = facts.add_bos and begins_with_bos(text, facts.bos_text)
    return await runner.tokenize(text, add_special=not doubled)


def check_context(tokens: Sequence[int], vocabulary: int) -> None:
    """Raises InvalidRequest for a token that the model does not have."""
    if tokens and (min(tokens) < 0 or max(tokens) >= vocabulary):
        raise InvalidRequest(f'"context" holds tokens outside of 0 to {vocabulary - 1}')

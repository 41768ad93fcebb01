"""``POST /api/chat``: a conversation, or the single-prompt form with server-sent events."""

from __future__ import annotations

from typing import Final

from agent.inference.request import ChatPrompt, GenerateRequest
from api.dependencies import ApiDependencies
from api.errors import model_required
from api.exchange import Exchange
from api.json_body import BodyReader, report_ignored
from api.ollama.bodies import ChatBody
from api.ollama.chat_prompt import chat_prompt
from api.ollama.frames import FrameEncoder
from api.ollama.generation import (
    answer_load,
    answer_rendered,
    answer_stream,
    answer_whole,
    request_id_of,
)
from api.ollama.keep_alive import parse_keep_alive
from api.ollama.parts import (
    Wants,
    check_images,
    check_source,
    check_top_logprobs,
    check_wants,
    parse_format,
    read_messages,
    read_options,
    wants_thinking,
)

_reader: Final = BodyReader(ChatBody)
_PROMPT_FORM_KEYS: Final = ("prompt", "system", "temperature", "top_p", "max_tokens")


async def chat(dependencies: ApiDependencies, exchange: Exchange) -> None:
    """Answer the last turn; no turns load or unload the model."""
    body = await _reader.read(exchange, dependencies.settings.body_limit_bytes)
    if not body.model:
        raise model_required()
    if body.messages is None and body.prompt is not None:
        await chat_prompt(dependencies, exchange, body, body.prompt)
        return
    report_ignored(exchange, [key for key in _PROMPT_FORM_KEYS if getattr(body, key) is not None])
    messages = body.messages or []
    keep_alive = parse_keep_alive(body.keep_alive)
    wants = Wants(
        tools=bool(body.tools),
        thinking=wants_thinking(body.think),
        images=await exchange.work_on_body(
            lambda: check_images([image for message in messages for image in message.images])
        ),
    )
    check_source(body.model)
    check_top_logprobs(body.top_logprobs)
    options = read_options(body.options, exchange)
    frames = FrameEncoder("chat", body.model, dependencies.now_ns)
    try:
        output_format = parse_format(body.format)
    except Exception:
        # Ollama looks the model up first, so its absence is the error that counts.
        await dependencies.catalog.resolve(body.model)
        raise
    await check_wants(dependencies, body.model, wants, verb="chat")
    if not messages:
        await answer_load(dependencies, exchange, body.model, options, keep_alive, frames)
        return
    request = GenerateRequest(
        request_id=request_id_of(exchange),
        model=body.model,
        prompt=ChatPrompt(messages=await exchange.work_on_body(lambda: read_messages(messages))),
        options=options,
        format=output_format,
        keep_alive=keep_alive,
        truncate=body.truncate,
        shift=body.shift,
        logprobs=body.logprobs,
        top_logprobs=body.top_logprobs,
        principal=exchange.principal,
    )
    if body.debug_render_only:
        await answer_rendered(dependencies, exchange, request, frames)
    elif body.stream:
        await answer_stream(dependencies, exchange, request, frames)
    else:
        await answer_whole(dependencies, exchange, request, frames)

"""``POST /api/generate``."""

from __future__ import annotations

from typing import Final

from agent.inference.request import GenerateRequest, TextPrompt
from api.dependencies import ApiDependencies
from api.errors import bad_request
from api.exchange import Exchange
from api.json_body import BodyReader
from api.ollama.bodies import GenerateBody
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
    read_options,
    wants_thinking,
)

_reader: Final = BodyReader(GenerateBody)


async def generate(dependencies: ApiDependencies, exchange: Exchange) -> None:
    """Complete a prompt; an empty one loads or unloads the model."""
    body = await _reader.read(exchange, dependencies.settings.body_limit_bytes)
    keep_alive = parse_keep_alive(body.keep_alive)
    wants = Wants(
        thinking=wants_thinking(body.think),
        images=await exchange.work_on_body(lambda: check_images(body.images)),
    )
    check_source(body.model)
    check_top_logprobs(body.top_logprobs)
    options = read_options(body.options, exchange)
    frames = FrameEncoder("generate", body.model, dependencies.now_ns)
    try:
        _check_raw(body)
        output_format = parse_format(body.format)
    except Exception:
        # Ollama looks the model up first, so its absence is the error that counts.
        await dependencies.catalog.resolve(body.model)
        raise
    await check_wants(dependencies, body.model, wants, verb="generate")
    if not (body.prompt or body.suffix):
        await answer_load(dependencies, exchange, body.model, options, keep_alive, frames)
        return
    request = GenerateRequest(
        request_id=request_id_of(exchange),
        model=body.model,
        prompt=TextPrompt(
            text=body.prompt,
            suffix=body.suffix,
            system=body.system or None,
            template=body.template or None,
            context=tuple(body.context),
            raw=body.raw,
        ),
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


def _check_raw(body: GenerateBody) -> None:
    if body.raw and (body.template or body.system or body.context):
        raise bad_request("raw mode does not support template, system, or context")

"""Running one generate or chat request and writing its answer."""

from __future__ import annotations

from collections.abc import Mapping

from agent.inference.options import OptionValue
from agent.inference.request import (
    Finished,
    GenerateRequest,
    KeepAlive,
    RequestId,
    TextDelta,
    TokenLogprob,
)
from api.dependencies import ApiDependencies
from api.exchange import Exchange
from api.ndjson import NdjsonStream
from api.ollama.frames import FrameEncoder


def request_id_of(exchange: Exchange) -> RequestId:
    return RequestId(exchange.request_id)


async def answer_stream(
    dependencies: ApiDependencies,
    exchange: Exchange,
    request: GenerateRequest,
    frames: FrameEncoder,
) -> None:
    """Stream the answer as NDJSON. A gone client stops the generation."""
    stream = NdjsonStream(exchange)
    async with (
        exchange.while_connected(),
        dependencies.inference.generate(request) as events,
    ):
        async for event in events:
            if isinstance(event, TextDelta):
                data = frames.delta(event) if event.text or event.logprobs else b""
                end = events.end()
                if end is None:
                    if data:
                        await stream.write(data)
                    continue
            else:
                data, end = b"", event
            await stream.finish(data + frames.final(end) + b"\n")
            return
        raise AssertionError("the event stream ended without Finished")


async def answer_whole(
    dependencies: ApiDependencies,
    exchange: Exchange,
    request: GenerateRequest,
    frames: FrameEncoder,
    *,
    repeat_text_as: str = "",
) -> None:
    """Collect the answer and send it as one object.

    ``repeat_text_as`` names a second key that holds the text.
    """
    async with exchange.while_connected():
        text, logprobs, finished = await collect(dependencies, request)
        extra: dict[str, object] | None = {repeat_text_as: text} if repeat_text_as else None
        body = frames.final(finished, text=text, logprobs=logprobs, extra=extra)
        await exchange.reply(200, body)


async def collect(
    dependencies: ApiDependencies, request: GenerateRequest
) -> tuple[str, list[TokenLogprob], Finished]:
    """The whole text, its logprobs, and the figures of one request."""
    parts: list[str] = []
    logprobs: list[TokenLogprob] = []
    async with dependencies.inference.generate(request) as events:
        async for event in events:
            if isinstance(event, Finished):
                return "".join(parts), logprobs, event
            parts.append(event.text)
            logprobs += event.logprobs
    raise AssertionError("the event stream ended without Finished")


async def answer_rendered(
    dependencies: ApiDependencies,
    exchange: Exchange,
    request: GenerateRequest,
    frames: FrameEncoder,
) -> None:
    """Send the prompt that would be evaluated, without evaluating it."""
    async with exchange.while_connected():
        prompt = await dependencies.inference.render(request)
        await exchange.reply(200, frames.rendered(prompt))


async def answer_load(
    dependencies: ApiDependencies,
    exchange: Exchange,
    model: str,
    options: Mapping[str, OptionValue],
    keep_alive: KeepAlive | None,
    frames: FrameEncoder,
) -> None:
    """Load or, with a ``keep_alive`` of 0, unload. A gone client gives its load up."""
    async with exchange.while_connected():
        # An unknown name is an error for both, although unloading would not notice.
        await dependencies.catalog.resolve(model)
        if keep_alive is not None and keep_alive.seconds == 0:
            await dependencies.inference.unload(model)
            await exchange.reply(200, frames.loaded("unload"))
        else:
            await dependencies.inference.load(model, options, keep_alive)
            await exchange.reply(200, frames.loaded("load"))

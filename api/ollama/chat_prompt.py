"""The single-prompt form of ``POST /api/chat``: ``prompt`` in, server-sent events out."""

from __future__ import annotations

import time

from agent.inference.options import OptionValue
from agent.inference.request import ChatPrompt, Finished, GenerateRequest, Message
from api.dependencies import ApiDependencies
from api.exchange import Exchange
from api.ollama.bodies import ChatBody
from api.ollama.frames import FrameEncoder
from api.ollama.generation import answer_whole, request_id_of
from api.ollama.keep_alive import parse_keep_alive
from api.ollama.parts import (
    Wants,
    check_source,
    check_top_logprobs,
    check_wants,
    parse_format,
    read_options,
    wants_thinking,
)
from api.sse import EventWriter, event


async def chat_prompt(
    dependencies: ApiDependencies, exchange: Exchange, body: ChatBody, prompt: str
) -> None:
    """Answer one prompt. Latencies count from the token before, first from the request."""
    began = time.perf_counter()
    keep_alive = parse_keep_alive(body.keep_alive)
    check_source(body.model)
    check_top_logprobs(body.top_logprobs)
    wants = Wants(tools=bool(body.tools), thinking=wants_thinking(body.think))
    await check_wants(dependencies, body.model, wants, verb="chat")
    messages = [Message(role="user", content=prompt)]
    if body.system:
        messages.insert(0, Message(role="system", content=body.system))
    request = GenerateRequest(
        request_id=request_id_of(exchange),
        model=body.model,
        prompt=ChatPrompt(messages=tuple(messages)),
        options=_options(body, exchange),
        format=parse_format(body.format),
        keep_alive=keep_alive,
        truncate=body.truncate,
        shift=body.shift,
        logprobs=body.logprobs,
        top_logprobs=body.top_logprobs,
        principal=exchange.principal,
    )
    if not body.stream:
        frames = FrameEncoder("chat", body.model, dependencies.now_ns)
        await answer_whole(dependencies, exchange, request, frames, repeat_text_as="response")
        return
    writer = EventWriter(exchange)
    last = began
    async with exchange.while_connected(), dependencies.inference.generate(request) as events:
        async for item in events:
            now = time.perf_counter()
            if isinstance(item, Finished):
                data, end = b"", item
            else:
                data = b""
                if item.text:
                    data = event(
                        {
                            "token": item.text,
                            "latency_ms": _milliseconds(now - last),
                            "request_id": exchange.request_id,
                        }
                    )
                    last = now
                end = events.end()
                if end is None:
                    if data:
                        await writer.write(data)
                    continue
            await writer.finish(data + event(_last(end, exchange.request_id, now - began)))
            return
        raise AssertionError("the event stream ended without Finished")


def _options(body: ChatBody, exchange: Exchange) -> dict[str, OptionValue]:
    options = dict(read_options(body.options, exchange))
    given = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "num_predict": body.max_tokens,
    }
    options |= {name: value for name, value in given.items() if value is not None}
    return options


def _last(finished: Finished, request_id: str, seconds: float) -> dict[str, object]:
    return {
        "token": "[DONE]",
        "latency_ms": 0,
        "total_tokens": finished.prompt_tokens + finished.completion_tokens,
        "done": True,
        "done_reason": finished.reason,
        "prompt_tokens": finished.prompt_tokens,
        "completion_tokens": finished.completion_tokens,
        "total_latency_ms": _milliseconds(seconds),
        "request_id": request_id,
    }


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)

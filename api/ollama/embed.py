"""``POST /api/embed`` and ``POST /api/embeddings``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, cast

import msgspec
import trio

from agent.inference.request import EmbedRequest, EmbedResult
from api.dependencies import ApiDependencies
from api.errors import bad_request, model_required
from api.exchange import Exchange
from api.json_body import BodyReader
from api.ollama.bodies import EmbedBody
from api.ollama.generation import request_id_of
from api.ollama.keep_alive import parse_keep_alive
from api.ollama.parts import check_source, read_options

_reader: Final = BodyReader(EmbedBody)
_VECTORS_PER_STEP: Final = 16
"""Vectors encoded before other tasks get a turn."""


async def embed(dependencies: ApiDependencies, exchange: Exchange) -> None:
    """Vectors for one text or a list of them; nothing to embed just loads the model."""
    body = await _reader.read(exchange, dependencies.settings.body_limit_bytes)
    inputs = _inputs(body.input if body.input is not None else body.prompt)
    async with exchange.while_connected():
        result = await _vectors(dependencies, exchange, body, inputs)
        if result is None:
            await exchange.reply(200, msgspec.json.encode({"model": body.model, "embeddings": []}))
            return
        figures = {
            "total_duration": result.total_ns,
            "load_duration": result.load_ns,
            "prompt_eval_count": result.prompt_tokens,
        }
        head = {name: value for name, value in figures.items() if value}
        tail = msgspec.json.encode(head)[1:]
        await exchange.reply(
            200,
            b"".join(
                (
                    b'{"model":',
                    msgspec.json.encode(body.model),
                    b',"embeddings":',
                    await _encode_vectors(result.vectors),
                    b"," if head else b"",
                    tail,
                )
            ),
        )


async def embeddings(dependencies: ApiDependencies, exchange: Exchange) -> None:
    """The vector of one text, under both documented keys."""
    body = await _reader.read(exchange, dependencies.settings.body_limit_bytes)
    if not body.model:
        raise model_required()
    inputs = _inputs(body.prompt if body.prompt is not None else body.input)
    async with exchange.while_connected():
        result = await _vectors(dependencies, exchange, body, inputs)
        if result is None:
            await exchange.reply(200, b'{"embedding":[],"embeddings":[]}')
            return
        first = msgspec.json.encode(result.vectors[0])
        everything = await _encode_vectors(result.vectors)
        await exchange.reply(
            200, b"".join((b'{"embedding":', first, b',"embeddings":', everything, b"}"))
        )


def _inputs(value: object) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list):
        raise bad_request("invalid input type")
    members = cast("list[object]", value)
    texts = tuple(member for member in members if isinstance(member, str))
    if len(texts) != len(members):
        raise bad_request("invalid input type")
    return texts


async def _vectors(
    dependencies: ApiDependencies,
    exchange: Exchange,
    body: EmbedBody,
    inputs: tuple[str, ...],
) -> EmbedResult | None:
    keep_alive = parse_keep_alive(body.keep_alive)
    check_source(body.model)
    if body.dimensions < 0:
        raise bad_request("dimensions must not be negative")
    options = read_options(body.options, exchange)
    if not inputs:
        await dependencies.inference.load(body.model, options, keep_alive)
        return None
    return await dependencies.inference.embed(
        EmbedRequest(
            request_id=request_id_of(exchange),
            model=body.model,
            inputs=inputs,
            truncate=body.truncate,
            dimensions=body.dimensions,
            options=options,
            keep_alive=keep_alive,
            principal=exchange.principal,
        )
    )


async def _encode_vectors(vectors: Sequence[Sequence[float]]) -> bytes:
    parts: list[bytes] = []
    for start in range(0, len(vectors), _VECTORS_PER_STEP):
        if start:
            await trio.lowlevel.checkpoint()
        parts.append(msgspec.json.encode(vectors[start : start + _VECTORS_PER_STEP])[1:-1])
    return b"[" + b",".join(parts) + b"]"

"""``HEAD`` and ``POST /api/blobs/:digest``: files on their way into a model."""

from __future__ import annotations

from contextlib import aclosing

from agent.models.errors import BlobNotFound, InvalidDigest
from api.dependencies import ApiDependencies
from api.exchange import Exchange


async def has_blob(dependencies: ApiDependencies, exchange: Exchange) -> None:
    """200 when the store has the blob, 404 when not; never a body."""
    try:
        found = await dependencies.catalog.has_blob(exchange.argument)
    except InvalidDigest:
        await exchange.reply(400)
        return
    except BlobNotFound:
        found = False
    await exchange.reply(200 if found else 404)


async def receive_blob(dependencies: ApiDependencies, exchange: Exchange) -> None:
    """Stream a blob to disk: 201 when it is new, 200 when it was there already."""
    async with aclosing(exchange.chunks()) as chunks:
        created = await dependencies.catalog.receive_blob(
            exchange.argument, chunks, exchange.content_length
        )
    await exchange.reply(201 if created else 200)

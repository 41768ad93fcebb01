"""The native routes."""

from __future__ import annotations

from typing import Final

from api.dependencies import ApiDependencies
from api.errors import Operation
from api.exchange import Exchange
from api.ollama import blobs, cloud, embed, names, transfer
from api.ollama.chat import chat
from api.ollama.create import create
from api.ollama.generate import generate
from api.ollama.ps import ps
from api.ollama.show import show
from api.ollama.tags import tags
from api.routes import Handler, Route

_READ: Final = ("GET", "HEAD")


async def root(_: ApiDependencies, exchange: Exchange) -> None:
    """The text by which tools know an Ollama."""
    await exchange.reply(200, b"Ollama is running", content_type=b"text/plain; charset=utf-8")


def ollama_routes() -> tuple[Route, ...]:
    """Every route of Ollama's native API."""
    rows: tuple[tuple[tuple[str, ...], str, Handler, Operation], ...] = (
        (_READ, "/", root, "node"),
        (("GET",), "/api/status", cloud.status, "cloud"),
        (_READ, "/api/tags", tags, "tags"),
        (("GET",), "/api/ps", ps, "ps"),
        (("POST",), "/api/show", show, "show"),
        (("POST",), "/api/generate", generate, "generate"),
        (("POST",), "/api/chat", chat, "chat"),
        (("POST",), "/api/embed", embed.embed, "embed"),
        (("POST",), "/api/embeddings", embed.embeddings, "embeddings"),
        (("POST",), "/api/pull", transfer.pull, "pull"),
        (("POST",), "/api/push", transfer.push, "push"),
        (("POST",), "/api/create", create, "create"),
        (("HEAD",), "/api/blobs/*", blobs.has_blob, "blob"),
        (("POST",), "/api/blobs/*", blobs.receive_blob, "blob"),
        (("POST",), "/api/copy", names.copy, "copy"),
        (("DELETE",), "/api/delete", names.delete, "delete"),
        (("POST",), "/api/me", cloud.account, "cloud"),
        (("POST",), "/api/signout", cloud.account, "cloud"),
        (("DELETE",), "/api/user/keys/*", cloud.account, "cloud"),
        (("POST",), "/api/experimental/web_search", cloud.web_search, "cloud"),
        (("POST",), "/api/experimental/web_fetch", cloud.web_fetch, "cloud"),
        (
            ("GET",),
            "/api/experimental/model-recommendations",
            cloud.recommendations,
            "cloud",
        ),
    )
    return tuple(
        Route(path=path, methods=methods, handler=handler, operation=operation)
        for methods, path, handler, operation in rows
    )

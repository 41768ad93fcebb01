"""Routes that concern Ollama's hosted service, which this node never uses."""

from __future__ import annotations

from api.dependencies import ApiDependencies
from api.errors import ApiError, missing_body
from api.exchange import Exchange
from api.json_body import parse_json


async def status(_: ApiDependencies, exchange: Exchange) -> None:
    """The hosted service is off, by construction."""
    await exchange.reply(200, b'{"cloud":{"disabled":true,"source":"config"}}')


async def account(_: ApiDependencies, __: Exchange) -> None:
    """Raises ApiError 403: there is no account to show or leave."""
    raise _disabled("account is unavailable")


async def web_search(dependencies: ApiDependencies, exchange: Exchange) -> None:
    """Raises ApiError 403, after the checks on the body."""
    await _refuse(dependencies, exchange, "web search is unavailable")


async def web_fetch(dependencies: ApiDependencies, exchange: Exchange) -> None:
    """Raises ApiError 403, after the checks on the body."""
    await _refuse(dependencies, exchange, "web fetch is unavailable")


async def recommendations(_: ApiDependencies, exchange: Exchange) -> None:
    """No models are recommended."""
    await exchange.reply(200, b'{"recommendations":[]}')


async def _refuse(dependencies: ApiDependencies, exchange: Exchange, what: str) -> None:
    body = await exchange.body(dependencies.settings.body_limit_bytes)
    if not body.strip():
        raise missing_body()
    parse_json(body)
    raise _disabled(what)


def _disabled(what: str) -> ApiError:
    return ApiError(403, "CLOUD_DISABLED", f"ollama cloud is disabled: {what}")

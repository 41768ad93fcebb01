"""``POST /api/pull`` and ``POST /api/push``: checked, and refused with the reason."""

from __future__ import annotations

from typing import Final

from agent.inference.errors import NotAvailable
from agent.models.errors import InvalidName
from agent.models.names import parse_name
from api.dependencies import ApiDependencies
from api.errors import invalid_model_name, model_required
from api.exchange import Exchange
from api.json_body import BodyReader
from api.ollama.bodies import TransferBody
from api.ollama.parts import check_source

_reader: Final = BodyReader(TransferBody)


async def pull(dependencies: ApiDependencies, exchange: Exchange) -> None:
    """Raises NotAvailable for a well-formed request."""
    body = await _reader.read(exchange, dependencies.settings.body_limit_bytes)
    _check_name(body.model or body.name)
    raise NotAvailable(
        "pull is not available yet: this release has no registry client; create a model from a "
        "GGUF file, or point OLLAMA_MODELS at an existing store"
    )


async def push(dependencies: ApiDependencies, exchange: Exchange) -> None:
    """Raises NotAvailable for a well-formed request."""
    body = await _reader.read(exchange, dependencies.settings.body_limit_bytes)
    name = body.model or body.name
    if not name:
        raise model_required()
    _check_name(name)
    raise NotAvailable("push is not available yet: this release has no registry client")


def _check_name(name: str) -> None:
    check_source(name)
    try:
        parse_name(name)
    except InvalidName as error:
        raise invalid_model_name() from error

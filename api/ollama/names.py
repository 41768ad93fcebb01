"""``POST /api/copy`` and ``DELETE /api/delete``: changes of names alone."""

from __future__ import annotations

from typing import Final

from agent.models.errors import InvalidName
from agent.models.names import parse_name
from api.dependencies import ApiDependencies
from api.errors import bad_request
from api.exchange import Exchange
from api.json_body import BodyReader
from api.ollama.bodies import CopyBody, NameBody
from api.ollama.parts import check_suffixes, names_hosted_model

_copy_reader: Final = BodyReader(CopyBody)
_delete_reader: Final = BodyReader(NameBody)


async def copy(dependencies: ApiDependencies, exchange: Exchange) -> None:
    """Give a model a second name; no bytes are copied."""
    body = await _copy_reader.read(exchange, dependencies.settings.body_limit_bytes)
    for role, name in (("source", body.source), ("destination", body.destination)):
        check_suffixes(name)
        try:
            parse_name(name)
        except InvalidName as error:
            raise bad_request(f'{role} "{name}" is invalid', "INVALID_NAME") from error
    if names_hosted_model(body.destination):
        # Every use of it would be refused. As a source it is the way to another name.
        raise bad_request(
            f'destination "{body.destination}" is invalid: names in "cloud" mean hosted models',
            "INVALID_NAME",
        )
    await dependencies.catalog.copy(body.source, body.destination)
    await exchange.reply(200)


async def delete(dependencies: ApiDependencies, exchange: Exchange) -> None:
    """Remove a name, and the layers that no other name uses."""
    body = await _delete_reader.read(exchange, dependencies.settings.body_limit_bytes)
    name = body.model or body.name
    check_suffixes(name)
    parse_name(name)
    await dependencies.catalog.delete(name)
    await exchange.reply(200)

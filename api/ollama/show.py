"""``POST /api/show``: everything about one model."""

from __future__ import annotations

from typing import Final

import msgspec

from agent.inference.request import JsonValue, Message
from agent.models.show import ShowDetails
from api.dependencies import ApiDependencies
from api.errors import model_required
from api.exchange import Exchange
from api.json_body import BodyReader
from api.ollama.bodies import ShowBody
from api.ollama.details import model_details
from api.ollama.parts import check_source
from api.times import rfc3339_local

_reader: Final = BodyReader(ShowBody)


async def show(dependencies: ApiDependencies, exchange: Exchange) -> None:
    """Modelfile, template, metadata and capabilities of a model."""
    body = await _reader.read(exchange, dependencies.settings.body_limit_bytes)
    name = body.model or body.name
    if not name:
        raise model_required()
    check_source(name)
    details = await dependencies.catalog.show(name, verbose=body.verbose)
    info: dict[str, JsonValue] = dict(details.model_info)
    if exchange.header(b"user-agent").startswith("GitHubCopilotChat"):
        # This client shows the base name to its users and expects the name it asked for.
        info["general.basename"] = name
    await exchange.reply(200, msgspec.json.encode(_answer(details, info, body)))


def _answer(details: ShowDetails, info: dict[str, JsonValue], body: ShowBody) -> dict[str, object]:
    optional: dict[str, object] = {
        "license": details.license,
        "modelfile": details.modelfile,
        "parameters": details.parameters,
        "template": body.template or details.template,
        "system": body.system or details.system,
        "renderer": details.renderer,
        "parser": details.parser,
        "requires": details.requires,
        "messages": [_message(message) for message in details.messages],
        "projector_info": details.projector_info,
        "tensors": [
            {"name": tensor.name, "type": tensor.type, "shape": tensor.shape}
            for tensor in details.tensors
        ],
    }
    answer: dict[str, object] = {name: value for name, value in optional.items() if value}
    answer["details"] = model_details(details.model)
    answer["model_info"] = info
    answer["capabilities"] = sorted(details.capabilities)
    answer["modified_at"] = rfc3339_local(details.modified_at_s)
    return answer


def _message(message: Message) -> dict[str, str]:
    return {"role": message.role, "content": message.content}

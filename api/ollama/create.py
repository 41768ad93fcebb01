"""``POST /api/create``: a model from another, from GGUF blobs, or from a Modelfile."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from typing import Final, cast

import msgspec

from agent.inference.errors import NotAvailable
from agent.inference.options import OptionValue, unknown_options
from agent.models.create_request import CreateProgress, CreateRequest
from agent.models.errors import InvalidName
from agent.models.names import parse_name
from api.dependencies import ApiDependencies
from api.errors import bad_request, invalid_model_name
from api.exchange import Exchange
from api.json_body import BodyReader, report_ignored
from api.ndjson import NdjsonStream, line
from api.ollama.bodies import CreateBody
from api.ollama.parts import check_source, check_suffixes, names_hosted_model, read_messages

_reader: Final = BodyReader(CreateBody)
PLAIN_JSON: Final = b"application/json"


async def create(dependencies: ApiDependencies, exchange: Exchange) -> None:
    """Write a model and report each step. A gone client cancels it."""
    body = await _reader.read(exchange, dependencies.settings.body_limit_bytes)
    request = _request(dependencies, body)
    unknown = unknown_options(request.parameters)
    report_ignored(exchange, [f"parameters.{name}" for name in unknown])
    if body.quantize or body.quantization:
        raise NotAvailable("quantize is not available yet: this release writes models as they are")
    stream = NdjsonStream(exchange)
    async with exchange.while_connected():
        last = CreateProgress(status="success")
        async with aclosing(dependencies.catalog.create(request)) as steps:
            async for progress in steps:
                last = progress
                if body.stream:
                    await stream.write(line(_frame(progress)))
        if body.stream:
            await stream.finish()
        else:
            await exchange.reply(200, msgspec.json.encode(_frame(last)), content_type=PLAIN_JSON)


def _request(dependencies: ApiDependencies, body: CreateBody) -> CreateRequest:
    name = body.model or body.name
    check_suffixes(name)
    try:
        parse_name(name)
    except InvalidName as error:
        raise invalid_model_name() from error
    if names_hosted_model(name):
        raise bad_request('invalid model name: names in "cloud" mean hosted models', "INVALID_NAME")
    if body.modelfile is not None:
        return dependencies.modelfile_request(name, body.modelfile)
    check_source(body.from_)
    if not (body.from_ or body.files):
        raise bad_request("neither 'from' or 'files' was specified")
    return CreateRequest(
        model=name,
        from_=body.from_ or None,
        files=body.files,
        adapters=body.adapters,
        template=body.template,
        licenses=_licenses(body.license),
        system=body.system,
        parameters=cast("Mapping[str, OptionValue]", body.parameters),
        messages=read_messages(body.messages or []),
        quantize=body.quantize or body.quantization,
        renderer=body.renderer,
        parser=body.parser,
        requires=body.requires,
        info=body.info,
    )


def _licenses(value: object) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list):
        members = cast("list[object]", value)
        texts = tuple(member for member in members if isinstance(member, str))
        if len(texts) == len(members):
            return texts
    raise bad_request("license must be a string or a list of strings")


def _frame(progress: CreateProgress) -> dict[str, object]:
    frame: dict[str, object] = {"status": progress.status}
    if progress.digest:
        frame["digest"] = progress.digest
    if progress.total:
        frame["total"] = progress.total
        frame["completed"] = progress.completed
    return frame

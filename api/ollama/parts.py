"""Parts that several routes' bodies share: their checks and their internal form."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

from agent.inference.errors import InvalidFormat, NotAvailable, UnsupportedCapability
from agent.inference.options import OptionValue, unknown_options
from agent.inference.request import (
    JsonFormat,
    JsonValue,
    Message,
    OutputFormat,
    SchemaFormat,
    ToolCall,
)
from api.dependencies import ApiDependencies
from api.errors import ApiError, bad_request
from api.exchange import Exchange
from api.json_body import report_ignored
from api.ollama.bodies import MessageBody

TOP_LOGPROBS_LIMIT: Final = 20
THINK_LEVELS: Final = ("high", "medium", "low", "max")
CLOUD_DISABLED: Final = "ollama cloud is disabled: remote model is unavailable"
_THINK_CHOICES: Final = '"high", "medium", "low", "max", true, or false'


@dataclass(frozen=True, slots=True, kw_only=True)
class Wants:
    """What a request asks of its model beyond text."""

    tools: bool = False
    thinking: bool = False
    images: bool = False


def check_suffixes(model: str) -> None:
    """Raises ApiError 400 for a name that is both hosted and local."""
    if model.lower().endswith((":cloud:local", ":local:cloud", "-cloud:local")):
        raise bad_request("use either :local or :cloud, not both")


def names_hosted_model(model: str) -> bool:
    """Whether the name's tag says that Ollama's hosted service has the model."""
    _, colon, tag = model.lower().rpartition(":")
    return bool(colon) and "/" not in tag and (tag == "cloud" or tag.endswith("-cloud"))


def check_source(model: str) -> None:
    """Refuse names that mean a hosted model.

    Raises ApiError 400 or 403.
    """
    check_suffixes(model)
    if names_hosted_model(model):
        raise ApiError(403, "CLOUD_DISABLED", CLOUD_DISABLED)


def check_top_logprobs(value: int) -> None:
    """Raises ApiError 400 outside 0 to 20."""
    if not 0 <= value <= TOP_LOGPROBS_LIMIT:
        raise bad_request(f"top_logprobs must be between 0 and {TOP_LOGPROBS_LIMIT}")


def wants_thinking(value: object) -> bool:
    """Whether ``think`` asks for thinking; unset and false do not.

    Raises ApiError 400 for anything else than a boolean or a level.
    """
    if value is None or isinstance(value, bool):
        return bool(value)
    if not isinstance(value, str):
        raise bad_request(f"think must be a boolean or string ({_THINK_CHOICES})")
    if value not in THINK_LEVELS:
        raise bad_request(f'invalid think value: "{value}" (must be {_THINK_CHOICES})')
    return True


def check_images(images: Sequence[str]) -> bool:
    """Whether there are any.

    Raises ApiError 400 unless each is base64.
    """
    for image in images:
        try:
            base64.b64decode(image, validate=True)
        except (binascii.Error, ValueError) as error:
            raise bad_request(f"illegal base64 data: {error}") from error
    return bool(images)


def parse_format(value: object) -> OutputFormat | None:
    """The output constraint of ``format``.

    Raises InvalidFormat.
    """
    if value is None or value == "":
        return None
    if value == "json":
        return JsonFormat()
    if isinstance(value, dict):
        return SchemaFormat(cast("Mapping[str, JsonValue]", value))
    written = json.dumps(json.dumps(value))
    raise InvalidFormat(f'invalid format: {written}; expected "json" or a valid JSON Schema object')


def read_options(options: Mapping[str, object], exchange: Exchange) -> Mapping[str, OptionValue]:
    """Options as the service checks them; names without effect are reported."""
    if not options:
        return {}
    values = cast("Mapping[str, OptionValue]", options)
    unknown = unknown_options(values)
    if unknown:
        report_ignored(exchange, [f"options.{name}" for name in unknown])
    return values


def read_messages(messages: Sequence[MessageBody]) -> tuple[Message, ...]:
    """Turns in internal form; images are refused before this."""
    return tuple(
        Message(
            role=message.role.lower(),
            content=message.content,
            thinking=message.thinking,
            tool_calls=tuple(
                ToolCall(
                    name=call.function.name,
                    arguments=cast("Mapping[str, JsonValue]", call.function.arguments),
                    id=call.id,
                )
                for call in message.tool_calls
            ),
            tool_name=message.tool_name,
            tool_call_id=message.tool_call_id,
        )
        for message in messages
    )


async def check_wants(
    dependencies: ApiDependencies, model: str, wants: Wants, *, verb: str
) -> None:
    """Refuse what the model cannot do, and then what this release cannot do.

    Raises UnsupportedCapability, NotAvailable, or what resolving the name raises.
    """
    if not (wants.tools or wants.thinking or wants.images):
        return
    installed = await dependencies.catalog.resolve(model)
    capabilities = installed.capabilities
    if "completion" not in capabilities:
        raise UnsupportedCapability(model, verb)
    if wants.tools and "tools" not in capabilities:
        raise UnsupportedCapability(model, "tools")
    if wants.images and "vision" not in capabilities:
        raise UnsupportedCapability(model, "vision")
    if wants.thinking and "thinking" not in capabilities:
        raise UnsupportedCapability(model, "thinking")
    if wants.tools:
        raise NotAvailable("tools are not available yet: tool calls are not parsed in this release")
    if wants.images:
        raise NotAvailable("images are not available yet: this release loads no vision projectors")
    raise NotAvailable("think is not available yet: thinking is not parsed in this release")

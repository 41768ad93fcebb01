"""Shapes of one conversation, for templates that refuse it as it is."""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from agent.inference.request import Message

TOOL_CALL_ID_LENGTH: Final = 9
"""Mistral's templates insist on ids of this many letters and digits."""


def standard_roles(messages: Sequence[Message]) -> Iterator[Message]:
    for message in messages:
        yield replace(message, role="system") if message.role == "developer" else message


def shapes(messages: tuple[Message, ...]) -> Iterator[list[dict[str, object]]]:
    """The messages as they are, then shapes for templates that refuse them."""
    yield _dictionaries(messages)
    if any(message.tool_calls or message.tool_call_id for message in messages):
        messages = _with_short_ids(messages)
        yield _dictionaries(messages)
    folded = _with_folded_system(messages)
    if folded != messages:
        yield _dictionaries(folded)
    merged = _with_merged_neighbours(folded)
    if merged != folded:
        yield _dictionaries(merged)
    yield _with_typed_parts(_dictionaries(messages))
    if folded != messages:
        yield _with_typed_parts(_dictionaries(merged))
    told = _with_merged_neighbours(_with_tool_use_as_text(folded))
    if told != merged:
        yield _dictionaries(told)


def _dictionaries(messages: Sequence[Message]) -> list[dict[str, object]]:
    number = 0
    result: list[dict[str, object]] = []
    for message in messages:
        entry: dict[str, object] = {"role": message.role, "content": message.content}
        if message.thinking:
            entry["thinking"] = message.thinking
            entry["reasoning_content"] = message.thinking
        if message.tool_calls:
            calls: list[dict[str, object]] = []
            for call in message.tool_calls:
                calls.append(
                    {
                        "id": call.id or f"call{number:05d}",
                        "type": "function",
                        "function": {"name": call.name, "arguments": dict(call.arguments)},
                    }
                )
                number += 1
            entry["tool_calls"] = calls
        if message.tool_name:
            entry["name"] = message.tool_name
            entry["tool_name"] = message.tool_name
        if message.tool_call_id:
            entry["tool_call_id"] = message.tool_call_id
        result.append(entry)
    return result


def _with_short_ids(messages: Sequence[Message]) -> tuple[Message, ...]:
    return tuple(
        replace(
            message,
            tool_call_id=_short_id(message.tool_call_id),
            tool_calls=tuple(replace(call, id=_short_id(call.id)) for call in message.tool_calls),
        )
        for message in messages
    )


def _short_id(identifier: str) -> str:
    """The same id for the same id, in the form Mistral's templates want."""
    letters = string.ascii_letters + string.digits
    if not identifier or (
        len(identifier) == TOOL_CALL_ID_LENGTH and all(item in letters for item in identifier)
    ):
        return identifier
    digest = hashlib.sha256(identifier.encode()).digest()
    return "".join(letters[byte % len(letters)] for byte in digest[:TOOL_CALL_ID_LENGTH])


def _with_folded_system(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """System texts in front of the first user message, for templates without a system role."""
    system = "\n\n".join(item.content for item in messages if item.role == "system")
    if not system:
        return messages
    rest = [item for item in messages if item.role != "system"]
    for position, message in enumerate(rest):
        if message.role == "user":
            content = f"{system}\n\n{message.content}" if message.content else system
            rest[position] = replace(message, content=content)
            return tuple(rest)
    return (Message(role="user", content=system), *rest)


def _with_tool_use_as_text(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Calls as JSON in the assistant's words and results in the user's, for templates that
    know neither."""
    told: list[Message] = []
    for message in messages:
        if message.tool_calls:
            calls = [
                json.dumps(
                    {"name": call.name, "arguments": dict(call.arguments)}, ensure_ascii=False
                )
                for call in message.tool_calls
            ]
            parts = (message.content, *calls)
            content = "\n".join(part for part in parts if part)
            told.append(Message(role="assistant", content=content))
        elif message.role == "tool":
            told.append(replace(message, role="user", tool_name="", tool_call_id=""))
        else:
            told.append(message)
    return tuple(told)


def _with_merged_neighbours(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Neighbours of one role as one message, for templates that insist on taking turns."""
    merged: list[Message] = []
    for message in messages:
        last = merged[-1] if merged else None
        if last is not None and last.role == message.role and message.role in ("user", "assistant"):
            merged[-1] = replace(
                last,
                content="\n\n".join(part for part in (last.content, message.content) if part),
                images=last.images + message.images,
                tool_calls=last.tool_calls + message.tool_calls,
            )
        else:
            merged.append(message)
    return tuple(merged)


def _with_typed_parts(messages: list[dict[str, object]]) -> list[dict[str, object]]:
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        for message in messages
    ]

"""Ollama's rules for running a Go template over a conversation.

A template that mentions ``.Messages`` is run once over all of them. An older one is run once
per turn with System, Prompt and Response, and its last run stops at ``.Response``, where the
model goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from agent.inference.chat.conversation import Conversation
from agent.inference.chat.errors import TemplateLimit
from agent.inference.chat.go_template import syntax, values
from agent.inference.chat.go_template.evaluator import OUTPUT_LIMIT_CHARACTERS, Evaluator
from agent.inference.chat.go_template.parser import parse_document
from agent.inference.chat.go_template.values import JsonList, JsonMap, Record, Value
from agent.inference.request import JsonValue, Message, ToolCall

BASE_STEPS: Final = 100_000
STEPS_PER_MESSAGE: Final = 2_000
"""A run may take BASE_STEPS and this much more for each message and tool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateValues:
    """Plain text values, for a template run directly."""

    prompt: str
    suffix: str


@dataclass(frozen=True, slots=True)
class GoTemplate:
    """A parsed template and its fixed properties."""

    document: syntax.Document
    last_turn: syntax.Block
    """The root cut after ``.Response``."""
    used: frozenset[str]

    def variables_used(self) -> frozenset[str]:
        """Lower-cased field names; ``suffix``, ``tools`` and ``thinking`` tell capabilities."""
        return self.used

    @property
    def takes_messages(self) -> bool:
        return "messages" in self.used

    def render(self, conversation: Conversation) -> str:
        """The prompt of a conversation. Raises TemplateError."""
        system, messages = collate(conversation.messages)
        size = len(conversation.messages) + len(conversation.tools)
        steps = BASE_STEPS + STEPS_PER_MESSAGE * size
        run = Evaluator(self.document.defined, conversation.now, steps)
        thinking: dict[str, Value] = {
            "Think": bool(conversation.think),
            "ThinkLevel": conversation.think_level,
            "IsThinkSet": conversation.think is not None,
        }
        if self.takes_messages:
            data: dict[str, Value] = {
                "System": system,
                "Messages": [_message(message) for message in messages],
                "Tools": _tools(conversation.tools),
                "Response": "",
                **thinking,
            }
            return run.run(self.document.root, data)
        return self._render_turns(messages, thinking, conversation.now)

    def render_infill(self, infill: TemplateValues, now: datetime) -> str:
        """The prompt that asks for what belongs between prompt and suffix."""
        run = Evaluator(self.document.defined, now, BASE_STEPS)
        data: dict[str, Value] = {
            "Prompt": infill.prompt,
            "Suffix": infill.suffix,
            "Response": "",
            "Think": False,
            "ThinkLevel": "",
            "IsThinkSet": False,
        }
        return run.run(self.document.root, data)

    def _render_turns(
        self, messages: Sequence[Message], thinking: dict[str, Value], now: datetime
    ) -> str:
        output: list[str] = []
        turn = {"System": "", "Prompt": "", "Response": ""}

        def run(root: syntax.Block) -> None:
            evaluator = Evaluator(self.document.defined, now, BASE_STEPS)
            output.append(evaluator.run(root, {**turn, **thinking}))
            if sum(map(len, output)) > OUTPUT_LIMIT_CHARACTERS:
                raise TemplateLimit("template output is too long")
            turn.update(System="", Prompt="", Response="")

        for message in messages:
            if message.role == "system":
                if turn["Prompt"] or turn["Response"]:
                    run(self.document.root)
                turn["System"] = message.content
            elif message.role == "user":
                if turn["Response"]:
                    run(self.document.root)
                turn["Prompt"] = message.content
            elif message.role == "assistant":
                turn["Response"] = message.content
        run(self.last_turn)
        return "".join(output)


def parse_go_template(text: str) -> GoTemplate:
    """Read a TEMPLATE. Raises TemplateError naming the line.

    A text that mentions neither ``.Messages`` nor ``.Response`` gets ``{{ .Response }}``
    appended, so that earlier answers are not lost.
    """
    document = parse_document(text)
    used = document.variables_used()
    if "messages" not in used and "response" not in used:
        line = text.count("\n") + 1
        field = syntax.Field(line, ("Response",))
        pipeline = syntax.Pipeline(line, (syntax.Command(line, (field,)),))
        document = replace(document, root=(*document.root, syntax.Action(line, pipeline)))
        used = used | {"response"}
    return GoTemplate(document, syntax.cut_after_response(document.root), used)


def collate(messages: Sequence[Message]) -> tuple[str, tuple[Message, ...]]:
    """All system texts as one, and the messages with neighbours of one role merged.

    Tool results stay apart, since each answers a call of its own.
    """
    system: list[str] = []
    collated: list[Message] = []
    for message in messages:
        if message.role == "system":
            system.append(message.content)
        last = collated[-1] if collated else None
        if last is not None and last.role == message.role and message.role != "tool":
            collated[-1] = replace(
                last,
                content=f"{last.content}\n\n{message.content}",
                images=last.images + message.images,
                tool_calls=last.tool_calls + message.tool_calls,
                thinking=last.thinking or message.thinking,
            )
        else:
            collated.append(message)
    return "\n\n".join(system), tuple(collated)


def _message(message: Message) -> Record:
    return Record(
        {
            "Role": message.role,
            "Content": message.content,
            "Thinking": message.thinking,
            "Images": list(range(len(message.images))),
            "ToolCalls": [_tool_call(i, call) for i, call in enumerate(message.tool_calls)],
            "ToolName": message.tool_name,
            "ToolCallID": message.tool_call_id,
        }
    )


def _tool_call(index: int, call: ToolCall) -> Record:
    arguments = dict(call.arguments)
    entries = {key: values.from_json(value) for key, value in arguments.items()}
    function = Record({"Index": index, "Name": call.name, "Arguments": JsonMap(entries, arguments)})
    return Record({"ID": call.id, "Function": function})


def _tools(tools: Sequence[JsonValue]) -> JsonList:
    return JsonList(tuple(_tool(tool) for tool in tools), list(tools))


def _tool(tool: JsonValue) -> Value:
    definition = _object(tool)
    function = _object(definition.get("function"))
    parameters = _object(function.get("parameters"))
    properties = _object(parameters.get("properties"))
    return Record(
        {
            "Type": _text(definition.get("type")),
            "Items": values.from_json(definition.get("items")),
            "Function": Record(
                {
                    "Name": _text(function.get("name")),
                    "Description": _text(function.get("description")),
                    "Parameters": Record(
                        {
                            "Type": _text(parameters.get("type")),
                            "Defs": values.from_json(parameters.get("$defs")),
                            "Items": values.from_json(parameters.get("items")),
                            "Required": values.from_json(parameters.get("required")) or [],
                            "Properties": JsonMap(
                                {name: _property(entry) for name, entry in properties.items()},
                                properties,
                            ),
                        },
                        parameters,
                    ),
                },
                function,
            ),
        },
        definition,
    )


def _property(entry: JsonValue) -> Record:
    schema = _object(entry)
    kinds = schema.get("type")
    alternatives = schema.get("anyOf")
    properties = _object(schema.get("properties"))
    names: list[JsonValue] = list(kinds) if isinstance(kinds, list) else [kinds]
    texts = tuple(name for name in names if isinstance(name, str))
    printed: JsonValue = texts[0] if len(texts) == 1 else list(texts)
    # The type prints bare when there is one, as JSON when there are several.
    kind: Value = texts[0] if len(texts) == 1 else JsonList(texts, printed)
    return Record(
        {
            "Type": kind,
            "AnyOf": [_property(item) for item in alternatives]
            if isinstance(alternatives, list)
            else [],
            "Items": values.from_json(schema.get("items")),
            "Description": _text(schema.get("description")),
            "Enum": values.from_json(schema.get("enum")) or [],
            "Required": values.from_json(schema.get("required")) or [],
            "Properties": JsonMap(
                {name: _property(item) for name, item in properties.items()}, properties
            ),
        },
        schema,
    )


def _object(value: JsonValue) -> dict[str, JsonValue]:
    return value if isinstance(value, dict) else {}


def _text(value: JsonValue) -> str:
    return value if isinstance(value, str) else ""

"""A GGUF's own Jinja chat template, run in a sandbox with limits.

Templates are written against Hugging Face's environment: blocks trimmed, loop controls, a
``generation`` tag, ``raise_exception``, ``strftime_now``, a ``tojson`` that escapes nothing for
HTML. Many refuse a conversation shape they were not trained on, so rendering tries the messages
as they are first and then, step by step, a shape such templates accept.
"""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, cast

from jinja2 import Template, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError, UndefinedError
from jinja2.exceptions import TemplateError as JinjaError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import SandboxedEnvironment

from agent.inference.chat.conversation import Conversation
from agent.inference.chat.errors import TemplateError, TemplateLimit
from agent.inference.chat.work_budget import WorkBudget, current_budget, spending
from agent.inference.request import Message

SOURCE_LIMIT_CHARACTERS: Final = 1 << 20
OUTPUT_LIMIT_CHARACTERS: Final = 64 * 1024 * 1024
RANGE_LIMIT: Final = 10_000
"""Longest ``range()``."""
BASE_STEPS: Final = 200_000
STEPS_PER_MESSAGE: Final = 5_000
CHARACTERS_PER_STEP: Final = 256
"""Text handled by an operation costs one step per this many characters."""
COMPILED_LIMIT: Final = 32
"""Compiled templates kept."""
TOOL_CALL_ID_LENGTH: Final = 9
"""Mistral's templates insist on ids of this many letters and digits."""

_WIDTH_METHODS: Final = frozenset({"ljust", "rjust", "center", "zfill", "expandtabs"})
_PERCENT_WIDTH: Final = re.compile(r"%[^a-zA-Z%]*(?:\d{5}|\*)")
_FORMAT_WIDTH: Final = re.compile(r"\{[^{}]*:[^{}]*(?:\d{5}|\{)")
_WIDTH_LIMIT: Final = 10_000


class Refused(JinjaError):
    """The template called ``raise_exception``."""


class _GenerationTag(Extension):
    """``{% generation %}`` marks what training learns from; for a prompt it means nothing."""

    tags = {"generation"}  # noqa: RUF012  # the base class declares it a plain set

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(SandboxedEnvironment):
    """A sandbox that counts work. Mutating lists is allowed: real templates append to them."""

    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            autoescape=False,
            extensions=["jinja2.ext.loopcontrols", "jinja2.ext.do", _GenerationTag],
            finalize=_finalized,
            cache_size=0,
        )
        self.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "sort_keys": False}
        filters = cast("dict[str, Callable[..., object]]", self.filters)
        for name, function in list(filters.items()):
            filters[name] = _counted_filter(name, function)
        filters["tojson"] = _tojson
        filters["from_json"] = _from_json
        shared = cast("dict[str, object]", self.globals)
        shared["range"] = _range
        shared["raise_exception"] = _raise_exception
        shared["from_json"] = _from_json
        for unneeded in ("lipsum", "cycler", "joiner"):
            shared.pop(unneeded, None)
        self.count_step = _count_step
        self.join_text = _join_text

    def call(self, context: Context, obj: object, /, *args: object, **kwargs: object) -> object:
        _spend_sizes(args)
        owner: object = getattr(obj, "__self__", None)
        if isinstance(owner, str):
            _check_text_method(str(owner), getattr(obj, "__name__", ""), args)
        result: object = super().call(context, obj, *args, **kwargs)
        _spend(result)
        return result

    def wrap_str_format(self, value: object) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        pattern = str(getattr(value, "__self__", ""))

        def checked(*args: object, **kwargs: object) -> str:
            _check_text_method(pattern, "format", (*args, *kwargs.values()))
            return wrapped(*args, **kwargs)

        return checked

    def call_binop(self, context: Context, operator: str, left: object, right: object) -> object:
        _check_operation(operator, left, right)
        result: object = super().call_binop(context, operator, left, right)
        _spend(result)
        return result


def _spend(value: object) -> None:
    """Charge for handling ``value`` once."""
    budget = current_budget()
    if isinstance(value, str):
        budget.spend(1 + len(value) // CHARACTERS_PER_STEP)
    elif isinstance(value, (list, tuple, dict)):
        budget.spend(1 + len(cast("Sequence[object]", value)) // 8)
    else:
        budget.spend(1)


def _spend_sizes(values: Sequence[object]) -> None:
    for value in values:
        _spend(value)


def _count_step() -> str:
    current_budget().spend(1)
    return ""


def _text_of(value: object) -> str:
    """``str(value)``, refused before it is built when a nested value would explode."""
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple, dict)):
        current_budget().spend(_weight(cast("object", value)))
    return str(cast("object", value))


def _weight(value: object, depth: int = 0) -> int:
    """Number of parts of a nested value, shared ones counted each time they would print."""
    if depth > 32:
        raise TemplateLimit("a value is nested too deep")
    if isinstance(value, str):
        return 1 + len(value) // CHARACTERS_PER_STEP
    if isinstance(value, dict):
        parts: Iterator[object] = iter(cast("dict[object, object]", value).values())
    elif isinstance(value, (list, tuple)):
        parts = iter(cast("Sequence[object]", value))
    else:
        return 1
    limit = current_budget().left
    total = 1
    for part in parts:
        total += _weight(part, depth + 1)
        if total > limit:
            raise TemplateLimit("template takes too many steps")
    return total


def _finalized(value: object) -> object:
    if value is None:
        return ""
    return value if isinstance(value, Undefined) else _text_of(value)


def _join_text(*parts: object) -> str:
    texts = [_text_of(part) for part in parts]
    current_budget().spend(1 + sum(map(len, texts)) // CHARACTERS_PER_STEP)
    return "".join(texts)


def _check_operation(operator: str, left: object, right: object) -> None:
    if operator == "**":
        raise SecurityError("** is not available")
    if operator == "*":
        for sequence, count in ((left, right), (right, left)):
            if isinstance(sequence, (str, list, tuple)) and isinstance(count, int):
                length = len(cast("Sequence[object]", sequence)) * max(count, 0)
                current_budget().spend(length // 8)
    elif operator == "%" and isinstance(left, str):
        if _PERCENT_WIDTH.search(left):
            raise SecurityError("a format width is too large")
        current_budget().spend(_weight(right))
    elif operator == "+" and isinstance(left, int) and isinstance(right, int):
        current_budget().spend(left.bit_length() // 64)


def _check_text_method(owner: str, name: str, arguments: Sequence[object]) -> None:
    if name in _WIDTH_METHODS:
        if any(isinstance(item, int) and item > _WIDTH_LIMIT for item in arguments):
            raise SecurityError("a width is too large")
    elif name in ("format", "format_map"):
        if _FORMAT_WIDTH.search(owner):
            raise SecurityError("a format width is too large")
        current_budget().spend(sum(_weight(item) for item in arguments))
    elif name in ("replace", "translate"):
        grown = max((len(item) for item in arguments if isinstance(item, str)), default=0)
        current_budget().spend(len(owner) * grown // (CHARACTERS_PER_STEP * 256))
    elif name == "join" and arguments:
        current_budget().spend(_weight(arguments[0]))
        if isinstance(arguments[0], (list, tuple)):
            count = len(cast("Sequence[object]", arguments[0]))
            current_budget().spend(count * len(owner) // CHARACTERS_PER_STEP)


def _counted_filter(name: str, function: Callable[..., object]) -> Callable[..., object]:
    """``function`` with its subject charged first; passes keep working through attributes."""
    passes_state = getattr(function, "jinja_pass_arg", None) is not None
    subject = 1 if passes_state else 0

    def counted(*args: object, **kwargs: object) -> object:
        _spend_sizes(args[subject:])
        values = (*args[subject + 1 :], *kwargs.values())
        if any(isinstance(item, int) and item > _WIDTH_LIMIT for item in values):
            raise SecurityError(f"an argument of {name} is too large")
        if name in ("string", "join", "pprint", "e", "escape", "forceescape", "list", "indent"):
            current_budget().spend(_weight(args[subject] if len(args) > subject else None))
        value = args[subject] if len(args) > subject else None
        if name == "format":
            _check_operation("%", value, values)
        elif name == "replace" and isinstance(value, str):
            _check_text_method(value, "replace", values)
        result = function(*args, **kwargs)
        _spend(result)
        return result

    if passes_state:
        counted.jinja_pass_arg = function.jinja_pass_arg  # type: ignore[attr-defined]
    return counted


def _range(*bounds: int) -> range:
    result = range(*bounds)
    if len(result) > RANGE_LIMIT:
        raise TemplateLimit(f"range is longer than {RANGE_LIMIT}")
    return result


def _raise_exception(message: object = "") -> str:
    raise Refused(str(message))


def _from_json(text: object) -> object:
    try:
        return json.loads(str(text))
    except ValueError as error:
        raise Refused(f"from_json: {error}") from error


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    current_budget().spend(_weight(value))
    width = None if indent is None else min(indent, 16)
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=width,
        separators=separators,
        sort_keys=sort_keys,
        default=_json_fallback,
    )


def _json_fallback(value: object) -> object:
    if isinstance(value, Undefined):
        return None
    if isinstance(value, Iterator):
        # What filters such as ``map`` give; their source was already charged for.
        return list(cast("Iterator[object]", value))
    raise Refused(f"{type(value).__name__} has no JSON form")


def _instrumented(tree: nodes.Template) -> nodes.Template:
    """Make every loop round and macro call count a step, and every ``~`` go through us."""

    def count() -> nodes.ExprStmt:
        function = nodes.EnvironmentAttribute("count_step")
        return nodes.ExprStmt(nodes.Call(function, [], [], None, None))

    for loop in list(tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock))):
        cast("nodes.For", loop).body.insert(0, count())
    _replace_concat(tree)
    return tree


def _replace_concat(node: nodes.Node) -> None:
    for name, value in list(node.iter_fields()):
        if isinstance(value, nodes.Node):
            setattr(node, name, _without_concat(value))
        elif isinstance(value, list):
            items = cast("list[object]", value)
            items[:] = [
                _without_concat(item) if isinstance(item, nodes.Node) else item for item in items
            ]


def _without_concat(node: nodes.Node) -> nodes.Node:
    _replace_concat(node)
    if not isinstance(node, nodes.Concat):
        return node
    function = nodes.EnvironmentAttribute("join_text")
    return nodes.Call(function, node.nodes, [], None, None, lineno=node.lineno)


@dataclass(frozen=True, slots=True)
class JinjaTemplate:
    """A compiled template."""

    compiled: Template

    def render(self, conversation: Conversation) -> str:
        """The prompt of a conversation.

        A last assistant message without tool calls is taken as the beginning of the answer: it
        follows the generation prompt. Raises TemplateError when no accepted shape is found,
        with the reason the template gave for the messages as they were.
        """
        messages = tuple(_standard_roles(conversation.messages))
        opening = ""
        if messages and messages[-1].role == "assistant" and not messages[-1].tool_calls:
            opening = messages[-1].content
            messages = messages[:-1]
        steps = BASE_STEPS + STEPS_PER_MESSAGE * (len(messages) + len(conversation.tools))
        budget = WorkBudget(steps)
        first_failure: TemplateError | None = None
        with spending(budget):
            for shape in _shapes(messages):
                try:
                    return self._render_once(shape, conversation) + opening
                except TemplateLimit:
                    raise
                except TemplateError as failure:
                    first_failure = first_failure or failure
        if first_failure is None:
            raise TemplateError("there is nothing to render")
        raise first_failure

    def _render_once(
        self, messages: Sequence[Mapping[str, object]], conversation: Conversation
    ) -> str:
        def strftime_now(pattern: object) -> str:
            return conversation.now.strftime(str(pattern)[:256])

        variables: dict[str, object] = {
            "messages": messages,
            "bos_token": conversation.bos_text,
            "eos_token": conversation.eos_text,
            "add_generation_prompt": True,
            "strftime_now": strftime_now,
        }
        if conversation.tools:
            variables["tools"] = list(conversation.tools)
        if conversation.think is not None:
            variables["enable_thinking"] = conversation.think
            variables["thinking"] = conversation.think
        if conversation.think_level:
            variables["reasoning_effort"] = conversation.think_level
        pieces: list[str] = []
        length = 0
        try:
            for piece in self.compiled.generate(variables):
                length += len(piece)
                if length > OUTPUT_LIMIT_CHARACTERS:
                    raise TemplateLimit("template output is too long")
                pieces.append(piece)
        except TemplateError:
            raise
        except Refused as error:
            raise TemplateError(str(error)) from error
        except (JinjaError, UndefinedError) as error:
            raise TemplateError(error.message or str(error)) from error
        except RecursionError as error:
            raise TemplateLimit("template is nested too deep") from error
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            # Python's own complaints about what the template did with its values.
            raise TemplateError(f"{type(error).__name__}: {error}") from error
        return "".join(pieces)


@lru_cache(maxsize=COMPILED_LIMIT)
def compile_jinja(source: str) -> JinjaTemplate:
    """Compile a template; the last COMPILED_LIMIT are kept. Raises TemplateError."""
    if len(source) > SOURCE_LIMIT_CHARACTERS:
        raise TemplateLimit(f"template is longer than {SOURCE_LIMIT_CHARACTERS} characters")
    environment = _Environment()
    try:
        tree = _instrumented(environment.parse(source))
        code = environment.compile(tree)
        compiled = environment.template_class.from_code(
            environment, code, environment.make_globals(None)
        )
    except TemplateSyntaxError as error:
        raise TemplateError(error.message or str(error), error.lineno) from error
    except RecursionError as error:
        raise TemplateLimit("template is nested too deep") from error
    except (JinjaError, SyntaxError, ValueError, MemoryError, OverflowError) as error:
        raise TemplateError(str(error)) from error
    return JinjaTemplate(compiled)


# -- message shapes --------------------------------------------------------------------------


def _standard_roles(messages: Sequence[Message]) -> Iterator[Message]:
    for message in messages:
        yield replace(message, role="system") if message.role == "developer" else message


def _shapes(messages: tuple[Message, ...]) -> Iterator[list[dict[str, object]]]:
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

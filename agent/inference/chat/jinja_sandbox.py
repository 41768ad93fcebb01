"""The sandbox chat templates run in: what they may call, and what it costs them.

Jinja's own sandbox keeps templates away from Python's insides but lets them use any amount of
time and memory. Here loops, macro calls, operators, filters and method calls draw on a budget,
and what would be built at one stroke (padding, repetition, printing of shared lists) is weighed
before it is built.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Final, cast

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.exceptions import TemplateError as JinjaError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import SandboxedEnvironment

from agent.inference.chat.errors import TemplateLimit
from agent.inference.chat.work_budget import current_budget

RANGE_LIMIT: Final = 10_000
"""Longest ``range()``."""
CHARACTERS_PER_STEP: Final = 256
"""Text handled by an operation costs one step per this many characters."""
WIDTH_LIMIT: Final = 10_000
"""Largest padding and other number given to a filter."""

_WIDTH_METHODS: Final = frozenset({"ljust", "rjust", "center", "zfill", "expandtabs"})
_PERCENT_WIDTH: Final = re.compile(r"%[^a-zA-Z%]*(?:\d{5}|\*)")
_FORMAT_WIDTH: Final = re.compile(r"\{[^{}]*:[^{}]*(?:\d{5}|\{)")


class Refused(JinjaError):
    """The template called ``raise_exception``."""


class _GenerationTag(Extension):
    """``{% generation %}`` marks what training learns from; for a prompt it means nothing."""

    tags = {"generation"}  # noqa: RUF012  # the base class declares it a plain set

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatEnvironment(SandboxedEnvironment):
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
        values = cast("Sequence[object]", right) if isinstance(right, tuple) else (right,)
        _spend_copies(left.count("%"), values)
    elif operator == "+" and isinstance(left, int) and isinstance(right, int):
        current_budget().spend(left.bit_length() // 64)


def _check_text_method(owner: str, name: str, arguments: Sequence[object]) -> None:
    if name in _WIDTH_METHODS:
        if any(isinstance(item, int) and item > WIDTH_LIMIT for item in arguments):
            raise SecurityError("a width is too large")
    elif name in ("format", "format_map"):
        if _FORMAT_WIDTH.search(owner):
            raise SecurityError("a format width is too large")
        _spend_copies(owner.count("{"), arguments)
    elif name == "replace" and len(arguments) >= 2:
        current_budget().spend(owner.count(str(arguments[0])) * _weight(arguments[1]))
    elif name == "join" and arguments:
        _check_join(owner, arguments[0])


def _spend_copies(count: int, values: Sequence[object]) -> None:
    """Charge for ``values`` put into a text at ``count`` places, which may all be the same one."""
    current_budget().spend(count * max(map(_weight, values), default=1))


def _check_join(separator: str, items: object) -> None:
    if isinstance(items, (str, list, tuple, dict, range)):
        current_budget().spend(_weight(cast("object", items)))
        count = len(cast("Sequence[object]", items))
        current_budget().spend(count * len(separator) // CHARACTERS_PER_STEP)
    elif len(separator) > CHARACTERS_PER_STEP:
        # How many items there are cannot be told before they are used up.
        raise SecurityError("a separator is too long")


def _counted_filter(name: str, function: Callable[..., object]) -> Callable[..., object]:
    """``function`` with its subject charged first; passes keep working through attributes."""
    passes_state = getattr(function, "jinja_pass_arg", None) is not None
    subject = 1 if passes_state else 0

    def counted(*args: object, **kwargs: object) -> object:
        _spend_sizes(args[subject:])
        values = (*args[subject + 1 :], *kwargs.values())
        if any(isinstance(item, int) and item > WIDTH_LIMIT for item in values):
            raise SecurityError(f"an argument of {name} is too large")
        if name in ("string", "join", "pprint", "e", "escape", "forceescape", "list", "indent"):
            current_budget().spend(_weight(args[subject] if len(args) > subject else None))
        value = args[subject] if len(args) > subject else None
        if name == "join":
            _check_join(str(values[0]) if values else "", value)
        elif name == "list" and isinstance(value, str):
            current_budget().spend(len(value) // 8)
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


def instrumented(tree: nodes.Template) -> nodes.Template:
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

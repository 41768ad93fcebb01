"""The functions a Go chat template may call."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Final
from urllib.parse import quote_plus

from agent.inference.chat.errors import TemplateError, TemplateLimit
from agent.inference.chat.go_template import values
from agent.inference.chat.go_template.values import JsonMap, Record, Value

WIDTH_LIMIT: Final = 1024
"""Largest width or precision in a printf verb."""

_VERB: Final = re.compile(r"%([-+# 0]*)(\d+)?(?:\.(\d+))?(.)?", re.DOTALL)
_TYPESCRIPT_NAMES: Final = {
    "string": "string",
    "integer": "number",
    "number": "number",
    "boolean": "boolean",
    "array": "any[]",
    "object": "Record<string, any>",
    "null": "null",
}

Function = Callable[[Sequence[Value], int], Value]


def call(name: str, arguments: Sequence[Value], line: int, now: datetime) -> Value:
    """Run a built-in function other than ``and`` and ``or``, which evaluate lazily.

    ``now`` is what the date functions tell. Raises TemplateError.
    """
    if name == "currentDate":
        return now.strftime("%Y-%m-%d")
    if name == "yesterdayDate":
        return (now - timedelta(days=1)).strftime("%Y-%m-%d")
    return _FUNCTIONS[name](arguments, line)


def _need(arguments: Sequence[Value], name: str, least: int, most: int | None, line: int) -> None:
    count = len(arguments)
    if count < least or (most is not None and count > most):
        raise TemplateError(f"wrong number of arguments for {name}: {count}", line)


def _not(arguments: Sequence[Value], line: int) -> Value:
    _need(arguments, "not", 1, 1, line)
    return not values.truth(arguments[0])


def _eq(arguments: Sequence[Value], line: int) -> Value:
    _need(arguments, "eq", 2, None, line)
    return any(values.equal(arguments[0], other, line) for other in arguments[1:])


def _ne(arguments: Sequence[Value], line: int) -> Value:
    _need(arguments, "ne", 2, 2, line)
    return not values.equal(arguments[0], arguments[1], line)


def _lt(arguments: Sequence[Value], line: int) -> Value:
    _need(arguments, "lt", 2, 2, line)
    return values.less(arguments[0], arguments[1], line)


def _gt(arguments: Sequence[Value], line: int) -> Value:
    _need(arguments, "gt", 2, 2, line)
    return values.less(arguments[1], arguments[0], line)


def _le(arguments: Sequence[Value], line: int) -> Value:
    _need(arguments, "le", 2, 2, line)
    return not values.less(arguments[1], arguments[0], line)


def _ge(arguments: Sequence[Value], line: int) -> Value:
    _need(arguments, "ge", 2, 2, line)
    return not values.less(arguments[0], arguments[1], line)


def _index(arguments: Sequence[Value], line: int) -> Value:
    _need(arguments, "index", 1, None, line)
    current = arguments[0]
    for key in arguments[1:]:
        items = values.items_of(current)
        if isinstance(current, (dict, JsonMap)):
            if not isinstance(key, str):
                raise TemplateError("a map is indexed by a string", line)
            entries = current if isinstance(current, dict) else current.entries
            current = entries.get(key)
        elif items is not None:
            current = items[_position(key, len(items) - 1, line)]
        elif isinstance(current, str):
            data = current.encode()
            current = data[_position(key, len(data) - 1, line)]
        else:
            raise TemplateError(f"can't index a value of type {values.type_name(current)}", line)
    return current


def _position(key: Value, last: int, line: int) -> int:
    if isinstance(key, bool) or not isinstance(key, int):
        raise TemplateError(f"cannot index with a value of type {values.type_name(key)}", line)
    if not 0 <= key <= last:
        raise TemplateError(f"index out of range: {key}", line)
    return key


def _slice(arguments: Sequence[Value], line: int) -> Value:
    _need(arguments, "slice", 1, 4, line)
    subject = arguments[0]
    items = values.items_of(subject)
    if isinstance(subject, str):
        # Go counts bytes in a string.
        data = subject.encode()
        start, end = _bounds(arguments[1:], len(data), line)
        return data[start:end].decode(errors="replace")
    if items is None:
        raise TemplateError(f"can't slice a value of type {values.type_name(subject)}", line)
    start, end = _bounds(arguments[1:], len(items), line)
    return list(items[start:end])


def _bounds(arguments: Sequence[Value], length: int, line: int) -> tuple[int, int]:
    positions = [_position(argument, length, line) for argument in arguments]
    start = positions[0] if positions else 0
    end = positions[1] if len(positions) > 1 else length
    if start > end:
        raise TemplateError(f"invalid slice index: {start} > {end}", line)
    return start, end


def _len(arguments: Sequence[Value], line: int) -> Value:
    _need(arguments, "len", 1, 1, line)
    subject = arguments[0]
    items = values.items_of(subject)
    if items is not None:
        return len(items)
    if isinstance(subject, str):
        return len(subject.encode())
    if isinstance(subject, dict):
        return len(subject)
    if isinstance(subject, JsonMap):
        return len(subject.entries)
    raise TemplateError(f"len of type {values.type_name(subject)}", line)


def _print(arguments: Sequence[Value], line: int) -> Value:
    parts: list[str] = []
    for position, argument in enumerate(arguments):
        # A blank only between two operands of which neither is a string.
        if (
            position
            and not isinstance(argument, str)
            and not isinstance(arguments[position - 1], str)
        ):
            parts.append(" ")
        parts.append(values.formatted(argument))
    return _bounded("".join(parts), line)


def _println(arguments: Sequence[Value], line: int) -> Value:
    return _bounded(" ".join(values.formatted(argument) for argument in arguments) + "\n", line)


def _bounded(text: str, line: int) -> str:
    if len(text) > values.PRINT_LIMIT_CHARACTERS:
        raise TemplateLimit("a printed value is too long", line)
    return text


def _printf(arguments: Sequence[Value], line: int) -> Value:
    _need(arguments, "printf", 1, None, line)
    pattern = arguments[0]
    if not isinstance(pattern, str):
        raise TemplateError("printf needs a format string", line)
    rest = iter(arguments[1:])

    def replace(found: re.Match[str]) -> str:
        flags, width, precision, verb = found.groups()
        if verb is None:
            return "%!(NOVERB)"
        if verb == "%":
            return "%"
        for number in (width, precision):
            if number is not None and (len(number) > 4 or int(number) > WIDTH_LIMIT):
                raise TemplateLimit(f"printf width over {WIDTH_LIMIT}", line)
        try:
            argument = next(rest)
        except StopIteration:
            return f"%!{verb}(MISSING)"
        digits = None if precision is None else int(precision)
        text = _verb_text(verb, argument, flags, digits)
        if width is None:
            return text
        if "-" in flags:
            return text.ljust(int(width))
        fill = "0" if "0" in flags and verb in "dfxXeg" else " "
        return text.rjust(int(width), fill)

    text = _bounded(_VERB.sub(replace, pattern), line)
    extra = [f"{values.type_name(item)}={values.formatted(item)}" for item in rest]
    return f"{text}%!(EXTRA {', '.join(extra)})" if extra else text


def _verb_text(verb: str, argument: Value, flags: str, precision: int | None) -> str:
    bad = f"%!{verb}({values.type_name(argument)}={values.formatted(argument)})"
    plus = "+" if "+" in flags else ""
    match verb:
        case "v":
            return values.formatted(argument)
        case "s":
            if isinstance(argument, (bool, int, float)) or argument is None:
                return bad
            text = values.formatted(argument)
            return text if precision is None else text[:precision]
        case "q":
            if not isinstance(argument, str):
                return bad
            return json.dumps(argument, ensure_ascii=False)
        case "t":
            return values.formatted(argument) if isinstance(argument, bool) else bad
        case "T":
            return values.type_name(argument)
        case "d" | "c" | "x" | "X":
            if isinstance(argument, str) and verb in "xX":
                return argument.encode().hex() if verb == "x" else argument.encode().hex().upper()
            if isinstance(argument, bool) or not isinstance(argument, int):
                return bad
            if verb == "c":
                return chr(argument) if 0 <= argument < 0xD800 else "\ufffd"
            return f"{argument:{plus}{verb}}"
        case "f" | "e" | "g":
            if not isinstance(argument, float):
                return bad
            if verb == "g" and precision is None:
                return values.format_float(argument)
            return f"{argument:{plus}.{6 if precision is None else precision}{verb}}"
        case _:
            return bad


def _json(arguments: Sequence[Value], line: int) -> Value:
    _need(arguments, "json", 1, 1, line)
    return _bounded(values.json_text(values.to_json(arguments[0])), line)


def _joined(arguments: Sequence[Value]) -> str:
    if len(arguments) == 1 and isinstance(arguments[0], str):
        return arguments[0]
    return "".join(values.printed(argument) for argument in arguments)


def _html(arguments: Sequence[Value], line: int) -> Value:
    text = html.escape(_joined(arguments), quote=False)
    return _bounded(text.replace('"', "&#34;").replace("'", "&#39;"), line)


def _js(arguments: Sequence[Value], line: int) -> Value:
    text = json.dumps(_joined(arguments), ensure_ascii=False)[1:-1]
    for character, escape in (("'", "\\'"), ("<", "\\u003C"), (">", "\\u003E"), ("&", "\\u0026")):
        text = text.replace(character, escape)
    return _bounded(text, line)


def _urlquery(arguments: Sequence[Value], line: int) -> Value:
    return _bounded(quote_plus(_joined(arguments)), line)


def _call(_arguments: Sequence[Value], line: int) -> Value:
    raise TemplateError("call: no value here is a function", line)


def _typescript(arguments: Sequence[Value], line: int) -> Value:
    _need(arguments, "toTypeScriptType", 1, 1, line)
    subject = arguments[0]
    if isinstance(subject, Record):
        alternatives = values.items_of(subject.fields.get("AnyOf")) or ()
        if alternatives:
            return " | ".join(str(_typescript((item,), line)) for item in alternatives)
        return _typescript_names(subject.fields.get("Type"))
    return _typescript_names(subject)


def _typescript_names(kind: Value) -> str:
    names = [kind] if isinstance(kind, str) else list(values.items_of(kind) or ())
    known = [_TYPESCRIPT_NAMES.get(name, "any") for name in names if isinstance(name, str)]
    return " | ".join(known) or "any"


_FUNCTIONS: Final[dict[str, Function]] = {
    "not": _not,
    "eq": _eq,
    "ne": _ne,
    "lt": _lt,
    "le": _le,
    "gt": _gt,
    "ge": _ge,
    "index": _index,
    "slice": _slice,
    "len": _len,
    "print": _print,
    "printf": _printf,
    "println": _println,
    "html": _html,
    "js": _js,
    "urlquery": _urlquery,
    "call": _call,
    "json": _json,
    "toTypeScriptType": _typescript,
}

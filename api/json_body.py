"""Request bodies as Go's JSON decoder takes them: keys without case, null as absent.

Unknown keys are no error; they are reported, because a misspelt one otherwise goes unnoticed.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Final, Generic, TypeVar, cast, get_args, get_origin, get_type_hints

import msgspec

from api.errors import bad_request, missing_body
from api.exchange import Exchange

IGNORED_HEADER: Final = b"x-llamesh-ignored"
_IGNORED_LIMIT: Final = 32
_NAME_LIMIT: Final = 64
_BYTE: Final = re.compile(r"\(byte (\d+)\)")
_HEADER_UNSAFE: Final = re.compile(r"[^\x21-\x2b\x2d-\x7e]")

T = TypeVar("T", bound=msgspec.Struct)


class Body(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Base of request bodies."""


class BodyReader(Generic[T]):
    """Reads one kind of body. Fast for bodies written as documented, tolerant to the rest."""

    def __init__(self, kind: type[T]) -> None:
        self._kind = kind
        self._exact = msgspec.json.Decoder(kind)

    async def read(self, exchange: Exchange, limit_bytes: int) -> T:
        """The body of a request; names of ignored keys go into the answer's headers.

        Raises ApiError 400 for an empty or malformed body, 413 and 408 as ``Exchange.body``.
        """
        data = await exchange.body(limit_bytes)
        return await exchange.work_on_body(lambda: self.decode(data, exchange))

    def decode(self, data: bytes, exchange: Exchange) -> T:
        """Decode a body that was read already."""
        if not data.strip():
            raise missing_body()
        try:
            return self._exact.decode(data)
        except (msgspec.ValidationError, UnicodeDecodeError):
            pass
        except msgspec.DecodeError as error:
            raise bad_request(_syntax_text(error, data)) from error
        value = parse_json(data)
        if value is None:
            return self._kind()
        ignored: list[str] = []
        folded = _fold(value, self._kind, "", ignored)
        if ignored:
            report_ignored(exchange, ignored)
        try:
            return msgspec.convert(folded, self._kind)
        except msgspec.ValidationError as error:
            raise bad_request(f"json: cannot unmarshal: {error}") from error


def parse_json(data: bytes) -> object:
    """Plain JSON; ill-formed UTF-8 is replaced, as Go does.

    Raises ApiError 400.
    """
    try:
        return msgspec.json.decode(data)
    except UnicodeDecodeError:
        return parse_json(data.decode("utf-8", "replace").encode())
    except msgspec.DecodeError as error:
        raise bad_request(_syntax_text(error, data)) from error
    except RecursionError as error:
        raise bad_request("json: exceeded max depth") from error


def report_ignored(exchange: Exchange, names: list[str]) -> None:
    """Name keys without effect in the answer's headers and in the request's log line."""
    shown = [_HEADER_UNSAFE.sub("_", name)[:_NAME_LIMIT] for name in names[:_IGNORED_LIMIT]]
    if not shown:
        return
    if exchange.ignored:
        exchange.answer_headers.remove((IGNORED_HEADER, _header(exchange.ignored)))
    exchange.ignored += shown
    exchange.answer_headers.append((IGNORED_HEADER, _header(exchange.ignored)))


def _header(names: list[str]) -> bytes:
    return ", ".join(names).encode("ascii", "replace")


@cache
def _fields(kind: type[msgspec.Struct]) -> dict[str, tuple[str, type[msgspec.Struct] | None, bool]]:
    """Lower-cased key -> (key, struct type inside if any, whether it is a list of them)."""
    hints = get_type_hints(kind)
    found: dict[str, tuple[str, type[msgspec.Struct] | None, bool]] = {}
    for info in msgspec.structs.fields(kind):
        inner, many = _struct_inside(hints[info.name])
        found[info.encode_name.lower()] = (info.encode_name, inner, many)
    return found


def _struct_inside(hint: object) -> tuple[type[msgspec.Struct] | None, bool]:
    options = get_args(hint) if get_origin(hint) not in (list, None) else (hint,)
    for option in options:
        if get_origin(option) is list:
            inner, _ = _struct_inside(get_args(option)[0])
            if inner is not None:
                return inner, True
        if isinstance(option, type) and issubclass(option, msgspec.Struct):
            return option, False
    return None, False


def _fold(value: object, kind: type[msgspec.Struct], where: str, ignored: list[str]) -> object:
    if not isinstance(value, dict):
        return value
    known = _fields(kind)
    folded: dict[str, object] = {}
    for key, item in cast("dict[str, object]", value).items():
        field = known.get(key.lower())
        if field is None:
            ignored.append(where + key)
            continue
        name, inner, many = field
        if item is None:
            continue
        if inner is not None and many and isinstance(item, list):
            folded[name] = [
                _fold(member, inner, f"{where}{name}.", ignored)
                for member in cast("list[object]", item)
            ]
        elif inner is not None:
            folded[name] = _fold(item, inner, f"{where}{name}.", ignored)
        else:
            folded[name] = item
    return folded


def _syntax_text(error: msgspec.DecodeError, data: bytes) -> str:
    text = str(error)
    if "truncated" in text:
        return "unexpected EOF"
    place = _BYTE.search(text)
    if place is None:
        return text
    offset = int(place.group(1))
    character = data[offset : offset + 4].decode("utf-8", "replace")[:1]
    if "trailing" in text:
        return f"invalid character {character!r} after top-level value"
    return f"invalid character {character!r} in JSON at byte {offset}"

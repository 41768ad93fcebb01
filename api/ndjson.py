"""NDJSON streams: one JSON object per line, the first of which decides the status."""

from __future__ import annotations

from typing import Final

import msgspec

from api.exchange import Exchange

CONTENT_TYPE: Final = b"application/x-ndjson"


def line(value: object) -> bytes:
    """One object as a line."""
    return msgspec.json.encode(value) + b"\n"


def line_of_error(body: bytes) -> bytes:
    """The extra line of a stream that broke; no ``done`` line follows it."""
    return body + b"\n"


class NdjsonStream:
    """Writes lines of one answer; the status goes out with the first of them."""

    __slots__ = ("_exchange",)

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def write(self, data: bytes) -> None:
        """Send whole lines; waits while the client's buffers are full."""
        if self._exchange.started:
            await self._exchange.write(data)
        else:
            await self._exchange.stream(CONTENT_TYPE, data, line_of_error)

    async def finish(self, data: bytes = b"") -> None:
        """Send the last lines and end the answer."""
        if self._exchange.started:
            await self._exchange.finish(data)
        else:
            await self._exchange.stream(CONTENT_TYPE, data, line_of_error, last=True)

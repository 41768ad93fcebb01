"""Server-sent events."""

from __future__ import annotations

from typing import Final

import msgspec

from api.exchange import Exchange

CONTENT_TYPE: Final = b"text/event-stream; charset=utf-8"


def event(value: object) -> bytes:
    """One event with a JSON object as its data."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def event_of_error(body: bytes) -> bytes:
    """The last event of a stream that broke."""
    return b"data: " + body + b"\n\n"


class EventWriter:
    """Writes the events of one answer; the status goes out with the first of them."""

    __slots__ = ("_exchange",)

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def write(self, data: bytes) -> None:
        """Send whole events; waits while the client's buffers are full."""
        if self._exchange.started:
            await self._exchange.write(data)
        else:
            await self._exchange.stream(CONTENT_TYPE, data, event_of_error)

    async def finish(self, data: bytes) -> None:
        """Send the last events and end the answer."""
        if self._exchange.started:
            await self._exchange.finish(data)
        else:
            await self._exchange.stream(CONTENT_TYPE, data, event_of_error, last=True)

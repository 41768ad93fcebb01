"""A Hypercorn connection that batches its writes and drops clients that stop reading."""

from __future__ import annotations

from typing import Final

import structlog
import trio
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.tcp_server import TCPServer

SEND_TIMEOUT_S: Final = 30.0
"""How long one write may wait for a client to make room in its receive buffer."""

_log = structlog.get_logger()


class Connection(TCPServer):
    """One client connection.

    Hypercorn shields its writes from cancellation and puts no time limit on them, so a client
    that stops reading would hold its handler for ever. Here a write has a deadline, and ends
    early once the client has closed its side.
    """

    send_timeout_s: float = SEND_TIMEOUT_S

    def prepare(self, send_timeout_s: float) -> None:
        """Set up what the server adds; the application finds this object in its scope."""
        self.send_timeout_s = send_timeout_s
        self._corked = False
        self._held: list[bytes] = []
        self._writing: trio.CancelScope | None = None
        self._client_closed = False

    def cork(self) -> None:
        """Hold writes back until ``uncork``.

        Not on HTTP/2, where a write can wait for an answer to what would be held back.
        """
        self._corked = isinstance(self.protocol.protocol, H11Protocol)

    async def uncork(self) -> None:
        """Write everything held back, in one piece."""
        self._corked = False
        if self._held:
            data = b"".join(self._held)
            self._held.clear()
            await self._write(data)

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, RawData):
            if self._corked:
                self._held.append(event.data)
            else:
                await self._write(event.data)
            return
        if isinstance(event, Closed) and self._held:
            await self.uncork()
        if isinstance(event, Updated) and event.idle and self._client_closed:
            return  # nobody is left to wait for
        await super().protocol_send(event)

    async def _write(self, data: bytes) -> None:
        async with self.send_lock:
            if self._client_closed:
                return
            try:
                with trio.move_on_after(self.send_timeout_s, shield=True) as scope:
                    self._writing = scope
                    await self.stream.send_all(data)
                    self._writing = None
                    return
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self._writing = None
                await self.protocol.handle(Closed())
                return
            self._writing = None
        if not self._client_closed:
            _log.warning(
                "client_dropped",
                reason="it stopped reading its answer",
                waited_s=self.send_timeout_s,
            )
        # Part of the data may be out, so nothing sensible can follow it.
        await trio.aclose_forcefully(self.stream)
        await self.protocol.handle(Closed())

    async def _read_data(self) -> None:
        try:
            await super()._read_data()
        finally:
            self._client_closed = True
            if self._writing is not None:
                self._writing.cancel()
        # Hypercorn would keep the connection of a client that has left until it times out.
        await self.idle_task.stop()

"""One HTTP request and its answer, as handlers see them: a thin shell over ASGI.

It exists beside Quart's own request and response objects for three reasons. Bodies are read
with backpressure, so that an upload of any size costs a few buffers. An answer that is ready at
once leaves in one write. And an exchange costs a fraction of a Quart request context.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Final, Protocol, TypeVar
from urllib.parse import parse_qs

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, HTTPScope

from agent.security.principal import ANONYMOUS, Principal
from api.errors import JSON_TYPE, ErrorAnswer, body_too_large, body_too_slow

BODY_TIMEOUT_S: Final = 60.0
"""Longest wait for the next part of a request body."""
DRAIN_TIMEOUT_S: Final = 2.0
"""How long an unread body is thrown away so that the client gets to read its error."""
INLINE_BODY_BYTES: Final = 1 << 20
"""Larger bodies are decoded and checked in a thread."""

Headers = list[tuple[bytes, bytes]]
T = TypeVar("T")
LineOfError = Callable[[bytes], bytes]


class Wire(Protocol):
    """A connection that can hold writes back and let them leave together."""

    def cork(self) -> None: ...

    async def uncork(self) -> None: ...


class ClientGone(Exception):
    """The client closed its connection before the whole body had come."""


class Exchange:
    """One request. A handler answers it once: ``reply``, or ``stream`` then ``finish``."""

    __slots__ = (
        "_answered", "_body_bytes", "_body_complete", "_receive", "_scope", "_send", "_wire",
        "answer_headers", "argument", "error", "gone", "headers", "ignored", "line_of_error",
        "method", "path", "peer", "principal", "request_id", "started", "status",
    )  # fmt: skip

    def __init__(
        self,
        scope: HTTPScope,
        receive: ASGIReceiveCallable,
        send: ASGISendCallable,
        *,
        request_id: str,
        answer_headers: Headers,
        headers: dict[bytes, bytes],
        argument: str = "",
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._wire: Wire | None = scope["state"].get("wire") if "state" in scope else None
        self._body_bytes = 0
        self._body_complete = False
        self._answered = False
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        client = scope["client"]
        self.peer: str = client[0] if client else ""
        self.headers = headers
        self.request_id = request_id
        self.answer_headers = answer_headers
        self.argument = argument
        """The variable part of the path, if the route has one."""
        self.principal: Principal = ANONYMOUS
        self.status = 0
        self.started = False
        self.gone = False
        """The client went away while the handler worked."""
        self.line_of_error: LineOfError | None = None
        self.ignored: list[str] = []
        """Keys of the request that had no effect."""
        self.error: ErrorAnswer | None = None
        """The error that was told, for the log and the metrics."""

    def header(self, name: bytes) -> str:
        """A request header, empty when absent; ``name`` in lower case."""
        return self.headers.get(name, b"").decode("latin-1")

    def query(self) -> dict[str, str]:
        """Query parameters, the last value of each."""
        parsed = parse_qs(self._scope["query_string"].decode("latin-1"), keep_blank_values=True)
        return {name: values[-1] for name, values in parsed.items()}

    @property
    def content_length(self) -> int | None:
        """The announced body size in bytes, if any."""
        text = self.headers.get(b"content-length")
        return int(text) if text is not None and text.isdigit() else None

    async def body(self, limit_bytes: int) -> bytes:
        """The whole request body.

        Raises ApiError 413 as soon as it exceeds the limit, 408 when it stops coming, and
        ClientGone.
        """
        announced = self.content_length
        if announced is not None and announced > limit_bytes:
            raise body_too_large(limit_bytes)
        first = await self._next_part()
        self._body_bytes = len(first)
        if self._body_complete:
            return first
        parts = [first]
        size = len(first)
        while not self._body_complete:
            part = await self._next_part()
            size += len(part)
            if size > limit_bytes:
                raise body_too_large(limit_bytes)
            parts.append(part)
        self._body_bytes = size
        return b"".join(parts)

    async def work_on_body(self, work: Callable[[], T]) -> T:
        """The result of ``work`` that takes time with the size of the body: other requests go
        on meanwhile when that is large. Single calls into C keep the interpreter for their
        length, about a millisecond a megabyte."""
        if self._body_bytes <= INLINE_BODY_BYTES:
            return work()
        return await trio.to_thread.run_sync(work)

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The request body as it comes; a slow reader slows the client down."""
        while not self._body_complete:
            part = await self._next_part()
            if part:
                yield part

    async def _next_part(self) -> bytes:
        with trio.move_on_after(BODY_TIMEOUT_S):
            message = await self._receive()
            if message["type"] == "http.request":
                self._body_complete = not message["more_body"]
                return message["body"]
            raise ClientGone
        raise body_too_slow(BODY_TIMEOUT_S)

    @asynccontextmanager
    async def while_connected(self) -> AsyncGenerator[None]:
        """Cancel what is inside when the client goes away; ``gone`` then is true.

        The body must have been read. Errors pass through unwrapped.
        """
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, nursery.cancel_scope)
            try:
                yield
            except Exception as error:
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None and not self.gone:
            raise failure

    async def _watch(self, scope: trio.CancelScope) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                # The end of an answer is reported in the same way as a client that has left.
                if not self._answered:
                    self.gone = True
                    scope.cancel()
                return

    async def reply(
        self,
        status: int,
        body: bytes = b"",
        *,
        content_type: bytes = JSON_TYPE,
        headers: Headers | None = None,
    ) -> None:
        """Answer with everything at once."""
        head: Headers = [(b"content-length", b"%d" % len(body))]
        if body or self.method == "HEAD":
            head.append((b"content-type", content_type))
        if headers:
            head += headers
        if self._body_complete or self.headers.get(b"content-length", b"0") == b"0":
            drain = b"transfer-encoding" in self.headers and not self._body_complete
        else:
            drain = True
        wire = self._wire
        if wire is not None:
            wire.cork()
        try:
            await self._start(status, head)
            self._answered = not drain
            await self._send({"type": "http.response.body", "body": body, "more_body": drain})
        finally:
            if wire is not None:
                await wire.uncork()
        if drain:
            await self._drain()
            self._answered = True
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def reply_error(self, answer: ErrorAnswer, now_ns: int) -> None:
        """Tell an error: as the answer, or as the last line of a stream that has begun."""
        self.error = answer
        body = answer.body(request_id=self.request_id, now_ns=now_ns)
        if not self.started:
            headers: Headers = []
            if answer.retry_after_s is not None:
                headers.append((b"retry-after", b"%d" % max(1, round(answer.retry_after_s))))
            await self.reply(answer.status, body, headers=headers)
        elif self.line_of_error is not None:
            await self.finish(self.line_of_error(body))

    async def stream(
        self,
        content_type: bytes,
        first: bytes,
        line_of_error: LineOfError,
        *,
        last: bool = False,
    ) -> None:
        """Begin a streamed 200 with its first bytes, in one write; ``last`` also ends it."""
        self.line_of_error = line_of_error
        wire = self._wire
        if wire is not None:
            wire.cork()
        try:
            await self._start(200, [(b"content-type", content_type)])
            if last:
                await self.finish(first)
            else:
                await self.write(first)
        finally:
            if wire is not None:
                await wire.uncork()

    async def write(self, data: bytes) -> None:
        """Send a part of a stream; waits while the client's buffers are full."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def finish(self, data: bytes = b"") -> None:
        """End a stream, with its last bytes in the same write."""
        self._answered = True
        wire = self._wire
        if wire is not None:
            wire.cork()
        try:
            await self._send({"type": "http.response.body", "body": data, "more_body": False})
        finally:
            if wire is not None:
                await wire.uncork()

    async def _start(self, status: int, headers: Headers) -> None:
        self.status = status
        self.started = True
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": headers + self.answer_headers,
            }
        )

    async def _drain(self) -> None:
        # A server that closes on unread data makes the kernel send a reset, which can reach the
        # client before it has read the error.
        with trio.move_on_after(DRAIN_TIMEOUT_S):
            while not self._body_complete:
                message = await self._receive()
                if message["type"] != "http.request":
                    self.gone = True
                    return
                self._body_complete = not message["more_body"]

"""The client of both sides: plain sockets in one loop, which looks at bytes and parses nothing
until all streams have ended. It costs the same for whoever is measured, and little."""

from __future__ import annotations

import json
import re
import selectors
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

TIME_LIMIT_S: Final = 600.0
_CHUNKS_END: Final = b"0\r\n\r\n"


class StreamFailed(Exception):
    """A stream ended with an error status, early, or not at all."""


@dataclass(frozen=True, slots=True)
class Timing:
    """One stream: seconds from the common start."""

    first_s: float
    """Until the first bytes of the answer's text."""
    last_s: float
    body: bytes


@dataclass(slots=True)
class _Stream:
    connection: socket.socket
    marker: bytes
    received: bytearray = field(default_factory=bytearray)
    first_s: float | None = None
    last_s: float | None = None


def post(port: int, path: str, body: Mapping[str, Any]) -> bytes:
    """One request as bytes."""
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + content


def run_streams(port: int, requests: Sequence[bytes], marker: bytes) -> list[Timing]:
    """Send all requests at once and read all answers.

    ``marker`` is what the first piece of text looks like. Raises StreamFailed.
    """
    with selectors.DefaultSelector() as selector:
        streams = [_Stream(socket.create_connection(("127.0.0.1", port)), marker) for _ in requests]
        try:
            started = time.perf_counter()
            for stream, request in zip(streams, requests, strict=True):
                stream.connection.sendall(request)
                stream.connection.setblocking(False)
                selector.register(stream.connection, selectors.EVENT_READ, stream)
            _read_all(selector, len(streams), started)
        finally:
            for stream in streams:
                stream.connection.close()
    return [_timing(stream) for stream in streams]


def _read_all(selector: selectors.BaseSelector, remaining: int, started: float) -> None:
    while remaining:
        ready = selector.select(TIME_LIMIT_S)
        if not ready:
            raise StreamFailed(f"nothing arrived for {TIME_LIMIT_S} s")
        for key, _ in ready:
            stream: _Stream = key.data
            data = stream.connection.recv(65_536)
            now = time.perf_counter() - started
            stream.received += data
            if stream.first_s is None and stream.marker in stream.received:
                stream.first_s = now
            if not data or stream.received.endswith(_CHUNKS_END):
                stream.last_s = now
                selector.unregister(stream.connection)
                remaining -= 1


def _timing(stream: _Stream) -> Timing:
    head, _, rest = bytes(stream.received).partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise StreamFailed(f"answered {head[:60]!r} {rest[:300]!r}")
    if stream.first_s is None or stream.last_s is None:
        raise StreamFailed(f"no text in {rest[:300]!r}")
    body = join_chunks(rest) if b"chunked" in head.lower() else rest
    return Timing(stream.first_s, stream.last_s, body)


def join_chunks(data: bytes) -> bytes:
    """The body inside chunked transfer coding. Raises StreamFailed when it is cut short."""
    parts: list[bytes] = []
    at = 0
    while True:
        end = data.find(b"\r\n", at)
        size = re.fullmatch(rb"[0-9a-fA-F]+", data[at:end].split(b";")[0]) if end >= 0 else None
        if size is None:
            raise StreamFailed("the stream was cut")
        length = int(size.group(), 16)
        if length == 0:
            return b"".join(parts)
        parts.append(data[end + 2 : end + 2 + length])
        at = end + 2 + length + 2


def last_json(body: bytes) -> dict[str, Any]:
    """The last JSON object of an NDJSON or SSE body."""
    lines = [line for line in body.splitlines() if b"{" in line]
    if not lines:
        raise StreamFailed("an answer without any JSON")
    return json.loads(lines[-1].removeprefix(b"data: "))

"""The receiving half of a runner's socket."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Final

from agent.inference.protocol import FRAME_LIMIT_BYTES, LENGTH, ToRunner, to_runner_decoder

READ_BYTES: Final = 1 << 16


class BrokenStream(Exception):
    """The agent sent something that is not a frame."""


def frames(connection: socket.socket) -> Iterator[ToRunner]:
    """Frames until the agent closes the socket. Raises BrokenStream."""
    reader = connection.makefile("rb", READ_BYTES)
    while True:
        head = reader.read(LENGTH.size)
        if len(head) < LENGTH.size:
            return
        (length,) = LENGTH.unpack(head)
        if length > FRAME_LIMIT_BYTES:
            raise BrokenStream(f"a frame of {length} bytes is over the limit")
        body = reader.read(length)
        if len(body) < length:
            return
        yield to_runner_decoder.decode(body)

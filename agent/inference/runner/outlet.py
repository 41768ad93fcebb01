"""The sending half of a runner's socket: never blocks the engine."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections import deque
from typing import Final, NoReturn

from agent.inference.protocol import Frame, encode_frame

BACKLOG_LIMIT_BYTES: Final = 256 * 1024 * 1024
"""An agent that lets this much pile up is gone in all but name."""


class Outlet:
    """Writes frames from any thread. What the socket does not take at once, a thread sends."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._backlog: deque[memoryview] = deque()
        self._backlog_bytes = 0
        self._changed = threading.Condition()
        threading.Thread(target=self._flush, name="outlet", daemon=True).start()

    def send(self, frame: Frame) -> None:
        """Queue or send one frame. A vanished agent ends the process."""
        data = memoryview(encode_frame(frame))
        with self._changed:
            if not self._backlog:
                data = data[self._try_send(data) :]
            if data:
                self._backlog.append(data)
                self._backlog_bytes += len(data)
                if self._backlog_bytes > BACKLOG_LIMIT_BYTES:
                    _leave("the agent does not read")
                self._changed.notify()

    def drain(self, timeout_s: float) -> None:
        """Wait until everything is sent or the time is up."""
        with self._changed:
            self._changed.wait_for(lambda: not self._backlog, timeout_s)

    def _try_send(self, data: memoryview) -> int:
        try:
            return self._connection.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError:
            _leave("the agent closed the socket")

    def _flush(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._backlog)
                data = self._backlog[0]
            try:
                sent = self._connection.send(data)
            except OSError:
                _leave("the agent closed the socket")
            with self._changed:
                self._backlog_bytes -= sent
                if sent == len(data):
                    self._backlog.popleft()
                else:
                    self._backlog[0] = data[sent:]
                self._changed.notify_all()


def _leave(reason: str) -> NoReturn:
    sys.stderr.write(f"runner: {reason}, exiting\n")
    sys.stderr.flush()
    os._exit(0)

"""The benchmark client reads streams rightly."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from tests.benchmarks.streams import StreamFailed, join_chunks, last_json, post, run_streams

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Script:
    """A server that answers every connection with the same bytes."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.requests: list[bytes] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self.requests.append(connection.recv(65_536))
                connection.sendall(self._answer)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture
def scripts() -> Iterator[list[Script]]:
    started: list[Script] = []
    yield started
    for script in started:
        script.close()


def test_all_streams_are_read_to_their_end(scripts: list[Script]) -> None:
    script = Script(HEAD + b'5\r\n{"a":\r\n3\r\n1}\n\r\n0\r\n\r\n')
    scripts.append(script)
    timings = run_streams(
        script.port, [post(script.port, "/x", {"n": n}) for n in range(3)], b'"a"'
    )
    assert [timing.body for timing in timings] == [b'{"a":1}\n'] * 3
    assert all(0 < timing.first_s <= timing.last_s for timing in timings)
    assert sorted(request[-1:] + request[-2:-1] for request in script.requests) == [
        b"}0",
        b"}1",
        b"}2",
    ]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 500 Oops\r\n\r\na",
        HEAD + b"5\r\nhello\r\n0\r\n\r\n",
        HEAD + b"5\r\n{'a':\r\n",
        b"",
    ],
)
def test_a_failed_stream_is_no_measurement(scripts: list[Script], answer: bytes) -> None:
    script = Script(answer)
    scripts.append(script)
    with pytest.raises(StreamFailed):
        run_streams(script.port, [post(script.port, "/x", {})], b'"a"')


def test_chunks_may_hold_line_ends() -> None:
    assert join_chunks(b"4\r\na\r\nb\r\n1;x=y\r\nc\r\n0\r\n\r\n") == b"a\r\nbc"


def test_the_last_object_is_found_in_both_framings() -> None:
    assert last_json(b'{"a":1}\n{"b":2}\n') == {"b": 2}
    assert last_json(b'data: {"a":1}\n\ndata: {"b":2}\n\ndata: [DONE]\n\n') == {"b": 2}

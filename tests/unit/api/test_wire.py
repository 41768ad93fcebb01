"""What goes over the wire, byte for byte, and clients that leave or stop reading."""

from __future__ import annotations

import json
import socket

import httpx
import pytest
import trio
import trio.testing

from agent.inference.request import TextDelta
from api.server import AddressInUse, bind, bound_address
from tests.unit.api.conftest import running_node
from tests.unit.api.scripted import DONE


def http_request(method: str, path: str, body: bytes = b"", extra: str = "") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{extra}"
    if body:
        head += f"Content-Length: {len(body)}\r\n"
    return f"{head}\r\n".encode() + body


async def read_until(stream, end: bytes) -> bytes:
    data = b""
    with trio.fail_after(10):
        while not data.endswith(end):
            part = await stream.receive_some()
            if not part:
                break
            data += part
    return data


GENERATE = http_request("POST", "/api/generate", b'{"model":"chat","prompt":"x"}')


async def test_a_stream_is_chunked_with_one_line_per_chunk(node):
    stream = await trio.open_tcp_stream("127.0.0.1", node.port)
    async with stream:
        await stream.send_all(GENERATE)
        answer = await read_until(stream, b"\r\n0\r\n\r\n")
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert b"\r\ntransfer-encoding: chunked" in head.lower()
    assert b"\r\nx-request-id: req_" in head.lower()
    assert b"\r\nx-llamesh-node: node-a\r\n" in head.lower() + b"\r\n"
    assert b"\r\nx-ollama-node: node-a\r\n" in head.lower() + b"\r\n"
    assert b"content-length" not in head.lower()
    chunks = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        chunks.append(rest[:length])
        assert rest[length : length + 2] == b"\r\n"
        rest = rest[length + 2 :]
    assert chunks[-1] == b""
    assert len(chunks) == 4
    for chunk in chunks[:-1]:
        assert chunk.endswith(b"\n")
        assert chunk.count(b"\n") == 1
        json.loads(chunk)


@pytest.mark.parametrize(
    ("path", "body", "text"),
    [
        ("/api/generate", b'{"model":"chat","prompt":"x"}', b'"response":"b"'),
        ("/api/chat", b'{"model":"chat","messages":[{}]}', b'"content":"b"'),
        ("/api/chat", b'{"model":"chat","prompt":"x"}', b'"token":"b"'),
    ],
)
async def test_the_last_text_and_the_end_leave_in_one_write(node, path, body, text):
    go_on = trio.Event()

    async def script(_):
        yield TextDelta("a")
        await go_on.wait()
        yield TextDelta("b"), DONE

    node.inference.script = script
    stream = await trio.open_tcp_stream("127.0.0.1", node.port)
    async with stream:
        await stream.send_all(http_request("POST", path, body))
        await stream.receive_some()
        go_on.set()
        last = await stream.receive_some()
    assert text in last
    assert b'"done":true' in last
    assert last.endswith(b"\r\n0\r\n\r\n")
    assert last.count(b"\r\n0\r\n") == 1


async def test_an_answer_that_is_there_at_once_is_one_write(node):
    async def script(_):
        yield TextDelta("b"), DONE

    node.inference.script = script
    stream = await trio.open_tcp_stream("127.0.0.1", node.port)
    async with stream:
        await stream.send_all(GENERATE)
        answer = await stream.receive_some()
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"\r\n0\r\n\r\n")
    assert answer.count(b"\r\n0\r\n") == 1


async def test_the_status_waits_for_the_first_object(node):
    release = trio.Event()

    async def script(_):
        await release.wait()
        yield TextDelta("a")
        yield DONE

    node.inference.script = script
    stream = await trio.open_tcp_stream("127.0.0.1", node.port)
    async with stream:
        await stream.send_all(GENERATE)
        with trio.move_on_after(0.1) as silence:
            await stream.receive_some()
        assert silence.cancelled_caught
        release.set()
        first = await stream.receive_some()
        # Head and first object leave together.
        assert first.startswith(b"HTTP/1.1 200")
        assert b'"response":"a"' in first


async def test_the_last_object_and_the_end_leave_together(node):
    go_on = trio.Event()

    async def script(_):
        yield TextDelta("a")
        await go_on.wait()
        yield DONE

    node.inference.script = script
    stream = await trio.open_tcp_stream("127.0.0.1", node.port)
    async with stream:
        await stream.send_all(GENERATE)
        await stream.receive_some()
        go_on.set()
        last = await stream.receive_some()
        assert b'"done":true' in last
        assert last.endswith(b"\r\n0\r\n\r\n")


async def test_head_has_the_length_and_no_body(node):
    stream = await trio.open_tcp_stream("127.0.0.1", node.port)
    async with stream:
        await stream.send_all(http_request("HEAD", "/") + http_request("GET", "/"))
        answer = await read_until(stream, b"Ollama is running")
    head, get = answer.split(b"HTTP/1.1 ")[1:]
    assert head.endswith(b"\r\n\r\n")
    assert b"content-length: 17" in head.lower()
    assert get.endswith(b"\r\n\r\nOllama is running")


async def test_one_connection_serves_many_requests(node):
    stream = await trio.open_tcp_stream("127.0.0.1", node.port)
    async with stream:
        for _ in range(5):
            await stream.send_all(GENERATE)
            answer = await read_until(stream, b"\r\n0\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200")
            assert b"connection: close" not in answer.lower()


async def test_a_gone_client_stops_the_generation(node):
    started = trio.Event()

    async def script(_):
        started.set()
        yield TextDelta("a")
        await trio.sleep_forever()

    node.inference.script = script
    stream = await trio.open_tcp_stream("127.0.0.1", node.port)
    await stream.send_all(GENERATE)
    await started.wait()
    await stream.aclose()
    with trio.fail_after(5):
        await node.inference.ended.wait()
    await trio.testing.wait_all_tasks_blocked(0.05)
    counter = node.dependencies.metrics.http_requests.labels("/api/generate", "POST", "499")
    assert counter._value.get() == 1


@pytest.mark.parametrize("stream", [b"true", b"false"])
async def test_a_client_that_leaves_before_the_first_token_stops_the_generation(node, stream):
    started = trio.Event()

    async def script(_):
        started.set()
        await trio.sleep_forever()
        yield DONE

    node.inference.script = script
    connection = await trio.open_tcp_stream("127.0.0.1", node.port)
    body = b'{"model":"chat","prompt":"x","stream":%s}' % stream
    await connection.send_all(http_request("POST", "/api/generate", body))
    await started.wait()
    await connection.aclose()
    with trio.fail_after(5):
        await node.inference.ended.wait()


def slow_socket(port: int) -> socket.socket:
    """A connected client with a small receive buffer."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    return client


async def endless(_):
    while True:
        await trio.lowlevel.checkpoint()
        yield TextDelta("x" * 65536)


async def test_a_client_that_stops_reading_is_dropped():
    async with running_node(send_timeout_s=0.3) as node:
        node.inference.script = endless
        with slow_socket(node.port) as client:
            client.sendall(GENERATE)
            with trio.fail_after(10):
                await node.inference.ended.wait()


async def test_a_client_that_stops_reading_and_then_leaves_frees_its_slot_at_once():
    async with running_node(send_timeout_s=600) as node:
        node.inference.script = endless
        client = slow_socket(node.port)
        client.sendall(GENERATE)
        await trio.sleep(0.3)
        assert not node.inference.ended.is_set()
        # Only the writing half is closed, so no reset wakes the server's write.
        client.shutdown(socket.SHUT_WR)
        with trio.fail_after(5):
            await node.inference.ended.wait()
        client.close()


async def test_a_slow_client_slows_the_source_down(node):
    produced = 0

    async def script(_):
        nonlocal produced
        while True:
            await trio.lowlevel.checkpoint()
            produced += 65536
            yield TextDelta("x" * 65536)

    node.inference.script = script
    with slow_socket(node.port) as client:
        client.sendall(GENERATE)
        await trio.sleep(0.3)
        settled = produced
        await trio.sleep(0.3)
        assert produced == settled


async def test_a_body_over_the_limit_is_refused_with_the_limit_and_its_name():
    async with running_node(body_limit_bytes=1000) as node:
        for extra in ("", "Transfer-Encoding: chunked\r\n"):
            body = b'{"model":"' + b"x" * 5000 + b'"}'
            if extra:
                body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
                request = http_request("POST", "/api/chat", b"", extra) + body
            else:
                request = http_request("POST", "/api/chat", body)
            stream = await trio.open_tcp_stream("127.0.0.1", node.port)
            async with stream:
                await stream.send_all(request)
                answer = await read_until(stream, b"}")
            assert answer.startswith(b"HTTP/1.1 413")
            assert b"1000 bytes" in answer
            assert b"body_limit_bytes" in answer


async def test_a_large_refused_upload_still_hears_why(node):
    stream = await trio.open_tcp_stream("127.0.0.1", node.port)
    async with stream, trio.open_nursery() as nursery:
        size = 30 * 1024 * 1024
        head = f"POST /api/blobs/nonsense HTTP/1.1\r\nHost: x.local\r\nContent-Length: {size}\r\n"
        answer = b""

        async def read() -> None:
            nonlocal answer
            answer = await read_until(stream, b"}")

        nursery.start_soon(read)
        await stream.send_all(f"{head}\r\n".encode())
        for _ in range(30):
            await stream.send_all(bytes(1024 * 1024))
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"invalid digest format" in answer


async def test_an_upload_waits_for_its_reader(node):
    taken = trio.Event()
    go_on = trio.Event()

    async def receive(chunks):
        async for _ in chunks:
            taken.set()
            await go_on.wait()
        return b""

    node.catalog.receive = receive
    stream = await trio.open_tcp_stream("127.0.0.1", node.port)
    async with stream:
        size = 64 * 1024 * 1024
        head = f"POST /api/blobs/sha256:{'a' * 64} HTTP/1.1\r\nHost: localhost\r\n"
        await stream.send_all(f"{head}Content-Length: {size}\r\n\r\n".encode())
        sent = 0
        with trio.move_on_after(1) as stuck:
            while sent < size:
                await stream.send_all(bytes(256 * 1024))
                sent += 256 * 1024
        # The server stopped reading: what left is in kernel buffers, not in its memory.
        assert stuck.cancelled_caught
        assert taken.is_set()
        assert sent < size // 2


async def test_a_client_that_leaves_mid_upload_ends_it(node):
    ended = trio.Event()

    async def receive(chunks):
        try:
            return b"".join([chunk async for chunk in chunks])
        finally:
            ended.set()

    node.catalog.receive = receive
    stream = await trio.open_tcp_stream("127.0.0.1", node.port)
    head = f"POST /api/blobs/sha256:{'a' * 64} HTTP/1.1\r\nHost: localhost\r\n"
    await stream.send_all(f"{head}Content-Length: 100\r\n\r\nabc".encode())
    await trio.sleep(0.05)
    await stream.aclose()
    with trio.fail_after(5):
        await ended.wait()
    assert node.catalog.blobs == {}


async def test_a_taken_address_is_told_before_anything_starts():
    first = bind("127.0.0.1", 0)
    with first:
        address = bound_address(first)
        with pytest.raises(AddressInUse, match=f"127.0.0.1:{address.port} is in use"):
            bind("127.0.0.1", address.port)


async def test_shutdown_lets_a_stream_finish_and_answers_new_requests_with_503():
    go_on = trio.Event()

    async def script(_):
        yield TextDelta("a")
        await go_on.wait()
        yield DONE

    async with running_node() as node:
        node.inference.script = script
        stream = await trio.open_tcp_stream("127.0.0.1", node.port)
        async with stream:
            await stream.send_all(GENERATE)
            first = await stream.receive_some()
            node.shutdown.set()
            async with httpx.AsyncClient(base_url=node.url) as http:
                for path in ("/api/generate", "/api/tags"):
                    method = "GET" if path == "/api/tags" else "POST"
                    refused = await http.request(method, path)
                    assert refused.status_code == 503
                    assert refused.json()["code"] == "DRAINING"
                    assert "stopping" in refused.json()["error"]
                    assert int(refused.headers["retry-after"]) > 0
                    assert refused.headers["connection"] == "close"
                assert (await http.get("/readyz")).status_code == 503
                assert (await http.get("/healthz")).status_code == 200
            go_on.set()
            rest = await read_until(stream, b"\r\n0\r\n\r\n")
    assert b'"done":true' in first + rest


async def test_a_kept_connection_gets_its_503_while_a_stream_finishes():
    go_on = trio.Event()

    async def script(_):
        yield TextDelta("a")
        await go_on.wait()
        yield DONE

    async with running_node() as node:
        node.inference.script = script
        stream = await trio.open_tcp_stream("127.0.0.1", node.port)
        kept = await trio.open_tcp_stream("127.0.0.1", node.port)
        async with stream, kept:
            await kept.send_all(http_request("GET", "/"))
            await read_until(kept, b"Ollama is running")
            await stream.send_all(GENERATE)
            await stream.receive_some()
            node.shutdown.set()
            await trio.testing.wait_all_tasks_blocked()
            await kept.send_all(http_request("GET", "/api/tags"))
            refused = await read_until(kept, b"never")
            assert refused.startswith(b"HTTP/1.1 503 ")
            assert b"DRAINING" in refused
            go_on.set()
            assert b'"done":true' in await read_until(stream, b"never")


async def test_after_the_last_stream_nothing_listens_any_more():
    async with running_node() as node:
        node.shutdown.set()
        with trio.fail_after(5):
            while True:
                try:
                    stream = await trio.open_tcp_stream("127.0.0.1", node.port)
                except OSError:
                    break
                await stream.aclose()


async def test_a_connection_over_the_limit_is_told_503_and_closed():
    async with running_node(connection_limit=1) as node:
        first = await trio.open_tcp_stream("127.0.0.1", node.port)
        async with first:
            await first.send_all(http_request("GET", "/"))
            await read_until(first, b"Ollama is running")
            second = await trio.open_tcp_stream("127.0.0.1", node.port)
            async with second:
                refused = await read_until(second, b"never")
            assert refused.startswith(b"HTTP/1.1 503 ")
            head, _, body = refused.partition(b"\r\n\r\n")
            assert f"content-length: {len(body)}".encode() in head
            assert json.loads(body)["code"] == "TOO_MANY_CONNECTIONS"
            registry = node.dependencies.metrics.registry
            assert registry.get_sample_value("llamesh_http_connections_refused_total") == 1
        with trio.fail_after(5):
            answer = b""
            while not answer.startswith(b"HTTP/1.1 200"):
                third = await trio.open_tcp_stream("127.0.0.1", node.port)
                async with third:
                    await third.send_all(http_request("GET", "/"))
                    answer = await third.receive_some()


async def test_shutdown_ends_streams_after_the_grace_period():
    async def script(_):
        yield TextDelta("a")
        await trio.sleep_forever()

    async with running_node(grace_period_s=0.2) as node:
        node.inference.script = script
        stream = await trio.open_tcp_stream("127.0.0.1", node.port)
        async with stream:
            await stream.send_all(GENERATE)
            await stream.receive_some()
            node.shutdown.set()
            with trio.fail_after(5):
                await node.inference.ended.wait()


async def test_a_body_that_stops_coming_is_a_408(node, monkeypatch):
    monkeypatch.setattr("api.exchange.BODY_TIMEOUT_S", 0.1)
    monkeypatch.setattr("api.exchange.DRAIN_TIMEOUT_S", 0.1)
    stream = await trio.open_tcp_stream("127.0.0.1", node.port)
    async with stream:
        head = "POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n"
        await stream.send_all(head.encode() + b'{"model":')
        answer = await read_until(stream, b"}")
    assert answer.startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(("stream", "lines"), [(True, 19), (False, 1)])
async def test_http2_without_tls_sends_more_than_its_window(node, stream, lines):
    # The client here grants 16 MiB ahead.
    async def script(_):
        for _ in range(18):
            yield TextDelta("x" * 2**20)
        yield DONE

    node.inference.script = script
    async with httpx.AsyncClient(http1=False, http2=True, base_url=node.url) as http:
        with trio.fail_after(10):
            body = {"model": "chat", "prompt": "x", "stream": stream}
            answer = await http.post("/api/generate", json=body)
    assert answer.http_version == "HTTP/2"
    assert len(answer.text) > 18 * 2**20
    assert len(answer.text.splitlines()) == lines

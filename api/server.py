"""The listener: binds first, then serves the application on Hypercorn until told to stop."""

from __future__ import annotations

import errno
import ipaddress
import math
import resource
import socket
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, cast

import psutil
import structlog
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.logging import Logger
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, ConnectionState, ResponseSummary, WWWScope
from prometheus_client import Counter

from api.app import build_app
from api.dependencies import ApiDependencies
from api.wire import SEND_TIMEOUT_S, Connection

BACKLOG: Final = 1024
IDLE_CONNECTION_TIMEOUT_S: Final = 120.0
"""How long a connection may wait for its next request, or for the whole of its headers."""
HEADER_LIMIT_BYTES: Final = 64 * 1024
CONNECTION_LIMIT: Final = 4096
"""Open client connections, where the process may have that many files open."""
RESERVED_DESCRIPTORS: Final = 256
"""File descriptors that connections leave to runners, models and logs."""
CLOSE_TIMEOUT_S: Final = 1.5
"""How long connections get to close once no request runs, or, when the grace period is over, to
tell why they were not finished."""
_CONNECTIONS_REFUSED: Final = (
    b'{"error":"server busy, please try again.  too many open connections",'
    b'"code":"TOO_MANY_CONNECTIONS"}'
)
_REFUSAL: Final = (
    b"HTTP/1.1 503 \r\ncontent-type: application/json; charset=utf-8\r\nretry-after: 5\r\n"
    b"connection: close\r\ncontent-length: %d\r\n\r\n%b"
    % (len(_CONNECTIONS_REFUSED), _CONNECTIONS_REFUSED)
)
REFUSAL_TIMEOUT_S: Final = 1.0
REFUSAL_LOG_INTERVAL_S: Final = 10.0

_log = structlog.get_logger()


@dataclass
class AddressInUse(Exception):
    """Another process listens on the address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port} is in use by another process"


@dataclass
class AddressNotAvailable(Exception):
    """The address cannot be bound."""

    host: str
    port: int
    reason: str

    def __str__(self) -> str:
        return f"cannot listen on {self.host}:{self.port}: {self.reason}"


@dataclass(frozen=True, slots=True)
class BoundAddress:
    """Where the API is reached."""

    host: str
    port: int

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def loopback(self) -> bool:
        return ipaddress.ip_address(self.host.partition("%")[0]).is_loopback


def bind(host: str, port: int) -> socket.socket:
    """A listening socket on the first address of ``host``; port 0 takes any free one.

    Raises AddressInUse or AddressNotAvailable.
    """
    try:
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_ADDRCONFIG
        )
    except OSError as error:
        raise AddressNotAvailable(host, port, error.strerror or str(error)) from error
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            unspecified = ipaddress.ip_address(address[0]).is_unspecified
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not unspecified))
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(host, port) from error
        raise AddressNotAvailable(host, port, error.strerror or str(error)) from error
    return listener


def bound_address(listener: socket.socket) -> BoundAddress:
    """The address of a listening socket."""
    name = listener.getsockname()
    return BoundAddress(host=str(name[0]), port=int(name[1]))


async def serve(
    dependencies: ApiDependencies,
    listener: socket.socket,
    *,
    shutdown: trio.Event,
    send_timeout_s: float = SEND_TIMEOUT_S,
    connection_limit: int | None = None,
    task_status: trio.TaskStatus[BoundAddress] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the API on ``listener``, and close it at the end.

    ``connection_limit`` is by default what the process's open files allow, up to
    CONNECTION_LIMIT; a connection beyond it is told 503. After ``shutdown`` the running requests
    get the settings' grace period, while the application refuses new ones; once none runs, all
    connections are closed. Cancelling ends everything at once.
    """
    address = bound_address(listener)
    addresses = await trio.to_thread.run_sync(_own_addresses)
    app = build_app(
        dependencies,
        loopback=address.loopback,
        hostname=socket.gethostname(),
        addresses=addresses,
    )
    asgi: ASGIFramework = app
    limit = connection_limit or _connection_limit()
    server = _Server(
        ASGIWrapper(asgi),
        trio.CapacityLimiter(limit),
        send_timeout_s,
        dependencies.metrics.http_connections_refused,
    )
    context = WorkerContext(None)
    grace_period_s = dependencies.settings.grace_period_s
    async with trio.open_nursery() as connections:
        async with trio.open_nursery() as accepting:
            accepting.start_soon(
                partial(
                    trio.serve_listeners,
                    partial(server.serve, _configuration(), context),
                    [trio.SocketListener(trio.socket.from_stdlib_socket(listener))],
                    handler_nursery=connections,
                )
            )
            task_status.started(address)
            await shutdown.wait()
            with trio.move_on_after(grace_period_s):
                await app.activity.wait_idle()
            accepting.cancel_scope.cancel()
        await context.terminated.set()
        connections.cancel_scope.deadline = trio.current_time() + CLOSE_TIMEOUT_S


@dataclass(slots=True)
class _Server:
    """What all connections share."""

    app: ASGIWrapper
    limiter: trio.CapacityLimiter
    send_timeout_s: float
    refused: Counter
    told_at_s: float = -math.inf
    """When the log last heard of a refusal."""

    async def serve(
        self, config: Config, context: WorkerContext, stream: trio.SocketStream
    ) -> None:
        """One connection, from its first byte to its last."""
        try:
            self.limiter.acquire_on_behalf_of_nowait(stream)
        except trio.WouldBlock:
            self._count_refusal()
            with trio.move_on_after(REFUSAL_TIMEOUT_S), suppress(trio.BrokenResourceError):
                await stream.send_all(_REFUSAL)
            return
        try:
            await _serve_connection(self.app, config, context, self.send_timeout_s, stream)
        finally:
            self.limiter.release_on_behalf_of(stream)

    def _count_refusal(self) -> None:
        self.refused.inc()
        now_s = trio.current_time()
        if now_s - self.told_at_s >= REFUSAL_LOG_INTERVAL_S:
            self.told_at_s = now_s
            _log.warning("connections_refused", limit=self.limiter.total_tokens)


def _connection_limit() -> int:
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return CONNECTION_LIMIT
    return max(1, min(CONNECTION_LIMIT, allowed - RESERVED_DESCRIPTORS))


async def _serve_connection(
    app: ASGIWrapper,
    config: Config,
    context: WorkerContext,
    send_timeout_s: float,
    stream: trio.SocketStream,
) -> None:
    state: dict[str, object] = {}
    # Hypercorn tells plain and TLS streams apart itself; its annotation names only one.
    any_stream = cast("trio.SSLStream[trio.SocketStream]", stream)
    connection = Connection(app, config, context, ConnectionState(state), any_stream)
    state["wire"] = connection
    connection.prepare(send_timeout_s)
    try:
        await connection.run()
    except Exception:
        # One client's connection must not end the others.
        _log.exception("connection_failed")


class _QuietLogger(Logger):
    """Hypercorn's log, reduced to what the application cannot log itself."""

    async def access(
        self, request: WWWScope, response: ResponseSummary | None, request_time: float
    ) -> None:
        """Requests are logged by the application, with their ids."""

    async def exception(self, message: str, *_: object, **__: object) -> None:
        _log.exception("http_application_failed", detail=message)


def _configuration() -> Config:
    config = Config()
    config.logger_class = _QuietLogger
    config.accesslog = None
    config.errorlog = None
    config.include_server_header = False
    config.keep_alive_timeout = IDLE_CONNECTION_TIMEOUT_S
    config.keep_alive_max_requests = 1_000_000
    config.h11_max_incomplete_size = HEADER_LIMIT_BYTES
    return config


def _own_addresses() -> frozenset[str]:
    return frozenset(
        entry.address.partition("%")[0]
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family in (socket.AF_INET, socket.AF_INET6)
    )

"""The listener: binds first, then serves the application on Hypercorn until told to stop."""

from __future__ import annotations

import errno
import ipaddress
import socket
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

from api.app import build_app
from api.dependencies import ApiDependencies
from api.wire import SEND_TIMEOUT_S, Connection

BACKLOG: Final = 1024
IDLE_CONNECTION_TIMEOUT_S: Final = 120.0
"""How long a connection may wait for its next request, or for the whole of its headers."""
HEADER_LIMIT_BYTES: Final = 64 * 1024

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
    task_status: trio.TaskStatus[BoundAddress] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the API on ``listener``, and close it at the end.

    After ``shutdown`` no connection is accepted, idle ones are closed, and the others get the
    settings' grace period to finish what they are doing. Cancelling ends everything at once.
    """
    address = bound_address(listener)
    addresses = await trio.to_thread.run_sync(_own_addresses)
    app = build_app(
        dependencies,
        loopback=address.loopback,
        hostname=socket.gethostname(),
        addresses=addresses,
    )
    config = _configuration()
    context = WorkerContext(None)
    asgi: ASGIFramework = app
    open_connection = partial(_serve_connection, ASGIWrapper(asgi), config, context, send_timeout_s)
    async with trio.open_nursery() as connections:
        async with trio.open_nursery() as accepting:
            trio_listener = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
            accepting.start_soon(
                partial(
                    trio.serve_listeners,
                    open_connection,
                    [trio_listener],
                    handler_nursery=connections,
                )
            )
            task_status.started(address)
            await shutdown.wait()
            accepting.cancel_scope.cancel()
        await context.terminated.set()
        connections.cancel_scope.deadline = (
            trio.current_time() + dependencies.settings.grace_period_s
        )


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

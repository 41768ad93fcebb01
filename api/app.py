"""The application: every request passes here, and leaves with a request id and an answer."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterable
from typing import Final, cast

import structlog
import trio
from hypercorn.typing import (
    ASGIReceiveCallable,
    ASGISendCallable,
    ASGISendEvent,
    HTTPScope,
)
from prometheus_client import Counter, Histogram
from quart import Response
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection
from werkzeug.exceptions import HTTPException

from agent.telemetry.metrics import Metrics
from api.access import may_administer, principal_for
from api.cluster.routes import cluster_routes
from api.dependencies import ApiDependencies
from api.errors import ErrorAnswer, describe, draining, internal_error
from api.exchange import ClientGone, Exchange
from api.ollama.routes import ollama_routes
from api.origin import OriginPolicy
from api.routes import Match, Route, RouteTable, WrongMethod

REQUEST_ID_LIMIT: Final = 128
"""Longest request id taken over from a caller."""
CLIENT_CLOSED: Final = 499
"""Status in logs and metrics of a request whose client went away first."""
REASON_LIMIT: Final = 300
"""Characters of an error's text that go into the log."""
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Methods with a metric of their own; clients can invent others without end."""
ADMIN_PREFIX: Final = "/admin/"
ADMIN_REFUSED: Final = ErrorAnswer(
    403,
    "ADMIN_ONLY",
    "the admin routes need the admin token, or without one a caller on this machine",
)
TEXT_TYPE: Final = b"text/plain; charset=utf-8"

_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:@/+=-]{1,%d}" % REQUEST_ID_LIMIT)
_log = structlog.get_logger()

Headers = list[tuple[bytes, bytes]]


class Activity:
    """How many requests are running."""

    def __init__(self) -> None:
        self._running = 0
        self._idle: trio.Event | None = None

    def __enter__(self) -> None:
        self._running += 1

    def __exit__(self, *_: object) -> None:
        self._running -= 1
        if not self._running and self._idle is not None:
            self._idle.set()
            self._idle = None

    async def wait_idle(self) -> None:
        """Return once none is. For one caller."""
        if self._running:
            self._idle = trio.Event()
            await self._idle.wait()


class Api(QuartTrio):
    """The Quart application of one node, with directly answered routes in front.

    The routes in ``table`` skip Quart's request context, signals and sessions, which cost about
    a millisecond each; every other path is Quart's.
    """

    def __init__(self, dependencies: ApiDependencies, policy: OriginPolicy) -> None:
        super().__init__("api", static_folder=None, template_folder=None)
        self.dependencies = dependencies
        self.policy = policy
        self.table = RouteTable((*ollama_routes(), *cluster_routes()))
        self.activity = Activity()
        self.requests = RequestMetrics(dependencies.metrics)
        node = dependencies.node.node_name.encode("ascii", "replace")
        self.node_headers: Headers = [(b"x-llamesh-node", node), (b"x-ollama-node", node)]
        # Quart's own defaults would end a long generation and a long upload after a minute.
        self.config["RESPONSE_TIMEOUT"] = None
        self.config["BODY_TIMEOUT"] = None
        self.config["MAX_CONTENT_LENGTH"] = dependencies.settings.body_limit_bytes
        self.register_error_handler(HTTPException, _http_error)


async def _http_error(error: Exception) -> Response:
    refusal = cast("HTTPException", error)
    status = refusal.code or 500
    text = "404 page not found" if status == 404 else f"{status} {refusal.name.lower()}"
    headers = {
        name: value for name, value in refusal.get_headers() if name.lower() != "content-type"
    }
    return Response(text, status, headers, content_type=TEXT_TYPE.decode())


class RequestMetrics:
    """Counts answers, keeping the labelled children at hand."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._counters: dict[tuple[str, str, int], Counter] = {}
        self._histograms: dict[str, Histogram] = {}

    def record(self, route: str, method: str, status: int, seconds: float) -> None:
        """One answered request."""
        method = method if method in METHODS else "other"
        key = (route, method, status)
        counter = self._counters.get(key)
        if counter is None:
            counter = self._metrics.http_requests.labels(route, method, str(status))
            self._counters[key] = counter
        counter.inc()
        histogram = self._histograms.get(route)
        if histogram is None:
            histogram = self._metrics.http_seconds.labels(route)
            self._histograms[route] = histogram
        histogram.observe(seconds)

    def record_error(self, route: str, code: str) -> None:
        """One request that ended in an error."""
        self._metrics.http_errors.labels(route, code).inc()


def new_request_id() -> str:
    return f"req_{secrets.token_hex(12)}"


class DirectConnection(TrioASGIHTTPConnection):
    """Serves one HTTP request: directly where the table knows the path, else through Quart."""

    app: Api
    scope: HTTPScope

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        with self.app.activity:
            await self._serve(receive, send)

    async def _serve(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        app = self.app
        scope = self.scope
        began = time.perf_counter()
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id")
        if given is not None and _REQUEST_ID.fullmatch(given):
            request_id = given.decode("ascii")
        else:
            request_id = new_request_id()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        answer_headers: Headers = [(b"x-request-id", request_id.encode()), *app.node_headers]

        if app.dependencies.state() == "draining" and not scope["http_version"].startswith("2"):
            answer_headers.append((b"connection", b"close"))
        host = headers.get(b"host", b"").decode("latin-1")
        origin = headers.get(b"origin", b"").decode("latin-1")
        method = scope["method"]
        path = scope["path"]
        exchange = Exchange(
            scope,
            receive,
            send,
            request_id=request_id,
            answer_headers=answer_headers,
            headers=headers,
        )
        label = "other"
        try:
            if not app.policy.host_allowed(host) or (
                origin and not app.policy.origin_allowed(origin, host)
            ):
                await exchange.reply(403)
                return
            if method == "OPTIONS":
                preflight = app.policy.preflight_headers(origin) if origin else None
                await exchange.reply(204, headers=preflight)
                return
            if origin:
                answer_headers += app.policy.answer_headers(origin)
            exchange.principal = principal_for(
                exchange.header(b"authorization"), app.dependencies.settings
            )
            if path.startswith(ADMIN_PREFIX) and not may_administer(
                exchange.principal, exchange.peer, app.dependencies.settings
            ):
                await exchange.reply_error(ADMIN_REFUSED, app.dependencies.now_ns())
                return
            match app.table.find(method, path, scope["raw_path"].decode("latin-1")):
                case Match(route, argument):
                    label = route.label
                    exchange.argument = argument
                    await self._answer(exchange, route)
                case WrongMethod(allowed):
                    await exchange.reply(
                        405,
                        b"405 method not allowed",
                        content_type=TEXT_TYPE,
                        headers=[(b"allow", ", ".join(allowed).encode())],
                    )
                case None:
                    await super().__call__(receive, _with_headers(send, exchange))
        finally:
            left = exchange.gone and exchange.error is None
            status = CLIENT_CLOSED if left else exchange.status
            seconds = time.perf_counter() - began
            app.requests.record(label, method, status, seconds)
            _log_request(exchange, status, seconds)
            if exchange.error is not None:
                app.requests.record_error(label, exchange.error.code)

    async def _answer(self, exchange: Exchange, route: Route) -> None:
        app = self.app
        dependencies = app.dependencies
        # What tells about the node itself is answered until the end.
        if route.operation != "node" and dependencies.state() == "draining":
            await exchange.reply_error(draining(), dependencies.now_ns())
            return
        try:
            await route.handler(dependencies, exchange)
        except trio.Cancelled:
            raise
        except ClientGone:
            exchange.gone = True
        except Exception as error:
            answer = describe(error, route.operation)
            if answer is None:
                _log.exception("handler_failed", route=route.path)
                answer = internal_error()
            await exchange.reply_error(answer, dependencies.now_ns())


def _log_request(exchange: Exchange, status: int, seconds: float) -> None:
    """The one line of a request. An error is in it with its reason."""
    fields: dict[str, object] = {
        "method": exchange.method,
        "path": exchange.path,
        "status": status,
        "milliseconds": round(seconds * 1000, 3),
    }
    if exchange.ignored:
        fields["ignored"] = exchange.ignored
    error = exchange.error
    if error is not None:
        fields |= {"code": error.code, "reason": error.text[:REASON_LIMIT]}
        write = _log.warning if error.fault else _log.info
    else:
        # Reads are mostly polls by monitors; they would bury the rest.
        write = _log.debug if exchange.method in ("GET", "HEAD") else _log.info
    write("http_request", **fields)


def _with_headers(send: ASGISendCallable, exchange: Exchange) -> ASGISendCallable:
    async def sender(message: ASGISendEvent) -> None:
        if message["type"] == "http.response.start":
            exchange.status = message["status"]
            message["headers"] = [*message["headers"], *exchange.answer_headers]
        await send(message)

    return sender


def build_app(
    dependencies: ApiDependencies,
    *,
    loopback: bool,
    hostname: str,
    addresses: Iterable[str] = (),
) -> Api:
    """The application of one node.

    ``loopback`` says whether the listener is bound to a loopback address; ``hostname`` and
    ``addresses`` are this machine's, for the DNS rebinding guard.
    """
    policy = OriginPolicy(
        origins=dependencies.settings.origins,
        loopback=loopback,
        hostname=hostname,
        addresses=addresses,
    )
    app = Api(dependencies, policy)
    app.asgi_http_class = DirectConnection
    return app

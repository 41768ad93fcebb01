"""``llamesh serve``: the composition root. The only module of the agent that knows the API."""

from __future__ import annotations

import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack

import structlog
import trio

from agent import __version__, config
from agent.cli.main import UserError
from agent.cli.ports import describe_holder
from agent.cli.stop_signals import stop_on_signal
from agent.config import Configuration
from agent.lock import AlreadyRunning, agent_lock
from agent.node import Node
from agent.settings import Settings
from agent.telemetry import log
from agent.telemetry.metrics import Metrics

_log = structlog.get_logger()

WhenReady = Callable[[str], Awaitable[None]]


def run(environ: Mapping[str, str], flags: Mapping[str, str]) -> int:
    """Serve until a signal says stop. Raises ConfigError and UserError."""
    serve_configured(config.load(environ, flags))
    return 0


def serve_configured(configuration: Configuration, when_ready: WhenReady | None = None) -> None:
    """Serve one node until a signal says stop.

    ``when_ready`` runs beside it once the API answers, with the API's URL, and is cancelled
    when the node stops. Raises UserError for a home directory or port that is taken.
    """
    settings = configuration.settings
    log.configure(settings)
    with ExitStack() as held:
        try:
            held.enter_context(agent_lock(settings.home))
        except (AlreadyRunning, OSError) as problem:
            raise UserError(str(problem)) from None
        listener = held.enter_context(_listen(settings))
        if configuration.without_effect:
            _log.warning(
                "variables_without_effect", variables=", ".join(configuration.without_effect)
            )
        trio.run(_serve, settings, listener, when_ready)


def _listen(settings: Settings) -> socket.socket:
    from api.server import AddressInUse, AddressNotAvailable, bind

    try:
        return bind(settings.host, settings.port)
    except AddressInUse:
        raise UserError(describe_holder(settings.host, settings.port)) from None
    except AddressNotAvailable as problem:
        raise UserError(str(problem)) from None


async def _serve(settings: Settings, listener: socket.socket, when_ready: WhenReady | None) -> None:
    node = build_node(settings, listener)
    async with trio.open_nursery() as nursery:
        await nursery.start(stop_on_signal, node.lifecycle.begin_stop)
        async with trio.open_nursery() as beside:
            url = await nursery.start(_until_stopped, node, nursery.cancel_scope)
            if when_ready is not None:
                beside.start_soon(when_ready, url)


async def _until_stopped(
    node: Node, everything: trio.CancelScope, *, task_status: trio.TaskStatus[str]
) -> None:
    await node.serve(task_status=task_status)
    everything.cancel()


def build_node(settings: Settings, listener: socket.socket) -> Node:
    """Put the parts of one node together. ``listener`` is already bound."""
    from api.dependencies import ApiDependencies, NodeFacts
    from api.server import BoundAddress, serve

    from agent.inference import orphans
    from agent.inference.pool import RunnerPool
    from agent.inference.service import LocalInference
    from agent.models.catalog import Catalog

    orphans.sweep(settings.home)
    metrics = Metrics()
    catalog = Catalog(settings)
    pool = RunnerPool(settings, metrics)
    inference = LocalInference(catalog, pool, settings, metrics)
    facts = NodeFacts(
        node_id=settings.node_name,
        node_name=settings.node_name,
        agent_version=__version__,
        started_at_s=time.time(),
    )

    async def serve_api(node: Node, *, task_status: trio.TaskStatus[str]) -> None:
        dependencies = ApiDependencies(
            settings=settings,
            catalog=catalog,
            inference=inference,
            metrics=metrics,
            node=facts,
            state=node.lifecycle.state,
        )
        async with trio.open_nursery() as nursery:
            address: BoundAddress = await nursery.start(
                lambda task_status: serve(  # pyright: ignore[reportUnknownLambdaType]
                    dependencies,
                    listener,
                    shutdown=node.lifecycle.stopping,
                    task_status=task_status,
                )
            )
            task_status.started(address.url)

    return Node(settings=settings, runners=pool, serve_api=serve_api)

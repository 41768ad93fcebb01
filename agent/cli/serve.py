"""``llamesh serve``: the composition root. The only module of the agent that knows the API."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from agent.inference.pool import RunnerPool

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
    from agent.inference.chat.go_template import parse_go_template
    from agent.inference.devices import SystemProbe
    from agent.inference.pool import RunnerPool
    from agent.inference.protocol import BUILD_ID
    from agent.inference.service import LocalInference
    from agent.inference.supervisor import ProcessHost
    from agent.models.catalog import Catalog
    from agent.models.create_request import create_request_from_modelfile
    from api.dependencies import ApiDependencies, NodeFacts
    from api.server import BoundAddress, serve

    def validate_template(text: str) -> None:
        parse_go_template(text)

    metrics = Metrics()
    catalog = Catalog(settings, validate_template=validate_template)
    pool = RunnerPool(
        settings,
        ProcessHost(settings),
        SystemProbe(settings.node_name),
        metrics,
        build_id=BUILD_ID,
    )
    inference = LocalInference(
        models=catalog,
        runners=pool,
        metrics=metrics,
        rng=random.SystemRandom(),
        wall_clock=lambda: datetime.now().astimezone(),
        go_template=settings.go_template,
    )
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
            modelfile_request=create_request_from_modelfile,
            state=node.lifecycle.state,
        )
        serve_it = partial(serve, dependencies, listener, shutdown=node.lifecycle.stopping)
        async with trio.open_nursery() as nursery:
            address: BoundAddress = await nursery.start(serve_it)
            task_status.started(address.url)

    return Node(settings=settings, runners=_runners(settings, pool), serve_api=serve_api)


@asynccontextmanager
async def _runners(settings: Settings, pool: RunnerPool) -> AsyncGenerator[None]:
    """The runner pool while the node lives, after ending what an earlier agent left behind."""
    from agent.inference.orphans import end_orphans

    await end_orphans(settings.home / "runners")
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.serve)
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                # The node has waited as long as it wants to.
                await pool.close(0)

"""Fixtures that run the real application on a real loopback socket."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import httpx
import pytest
import trio

from api.server import bind, serve
from tests.unit.api.scripted import Node, ScriptedCatalog, ScriptedInference, dependencies_for


@asynccontextmanager
async def running_node(*, send_timeout_s=30.0, connection_limit=None, **changes):
    catalog = ScriptedCatalog()
    inference = ScriptedInference(catalog)
    shutdown = trio.Event()
    dependencies = replace(
        dependencies_for(catalog, inference, **changes),
        state=lambda: "draining" if shutdown.is_set() else "serving",
    )
    listener = bind("127.0.0.1", 0)
    async with trio.open_nursery() as nursery:
        serve_it = partial(
            serve,
            dependencies,
            listener,
            shutdown=shutdown,
            send_timeout_s=send_timeout_s,
            connection_limit=connection_limit,
        )
        address = await nursery.start(serve_it)
        try:
            yield Node(address.url, address.port, catalog, inference, dependencies, shutdown)
        finally:
            nursery.cancel_scope.cancel()


@pytest.fixture
async def node():
    async with running_node() as running:
        yield running


@pytest.fixture
async def client(node):
    async with httpx.AsyncClient(base_url=node.url, timeout=20) as http:
        yield http

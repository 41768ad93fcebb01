"""Health of the node: one builder for every path that asks for it."""

from __future__ import annotations

import msgspec
import trio

from agent.models.errors import ModelError
from api.dependencies import ApiDependencies
from api.exchange import Exchange
from api.times import rfc3339_utc

STORE_PROBE_TIMEOUT_S = 2.0


async def health(dependencies: ApiDependencies, exchange: Exchange) -> None:
    """200 while the node serves, also degraded; 503 while it starts or drains."""
    body = await _health(dependencies)
    await exchange.reply(503 if body["status"] == "unhealthy" else 200, msgspec.json.encode(body))


async def live(_: ApiDependencies, exchange: Exchange) -> None:
    """The process answers."""
    await exchange.reply(200, b'{"status":"ok"}')


async def ready(dependencies: ApiDependencies, exchange: Exchange) -> None:
    """200 while new requests are welcome."""
    state = dependencies.state()
    await exchange.reply(200 if state == "serving" else 503, msgspec.json.encode({"status": state}))


async def _health(dependencies: ApiDependencies) -> dict[str, object]:
    node = dependencies.node
    now_ns = dependencies.now_ns()
    state = dependencies.state()
    serving = state == "serving"
    store = await _store_answers(dependencies)
    if not serving:
        status, message = "unhealthy", f"the node is {state}"
    elif not store:
        status, message = "degraded", "the model store does not answer"
    else:
        status, message = "healthy", "the node serves"
    running = dependencies.inference.running()
    busy = sum(1 for runner in running if runner.slots_busy > 0)
    return {
        "status": status,
        "message": message,
        "timestamp": rfc3339_utc(now_ns),
        "version": node.agent_version,
        "node_id": node.node_id,
        "node_name": node.node_name,
        "mode": "single",
        "uptime_seconds": round(now_ns / 1e9 - node.started_at_s, 3),
        "ollama_running": serving,
        "model_store_answers": store,
        "services": {
            "p2p": False,
            "p2p_peers": 0,
            "consensus": False,
            "consensus_leader": False,
            "scheduler": serving,
            "available_nodes": int(serving),
        },
        "workers": {"total": len(running), "idle": len(running) - busy, "busy": busy},
    }


async def _store_answers(dependencies: ApiDependencies) -> bool:
    with trio.move_on_after(STORE_PROBE_TIMEOUT_S):
        try:
            await dependencies.catalog.list()
        except (ModelError, OSError):
            return False
        return True
    return False

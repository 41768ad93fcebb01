"""``GET /api/ps``: what is loaded."""

from __future__ import annotations

import msgspec

from agent.inference.request import RunningModel
from agent.models.errors import ModelError
from api.dependencies import ApiDependencies
from api.exchange import Exchange
from api.ollama.details import model_details
from api.times import forever_after, rfc3339_local


async def ps(dependencies: ApiDependencies, exchange: Exchange) -> None:
    """Live runners, latest expiry first."""
    rows = [await _row(dependencies, running) for running in dependencies.inference.running()]
    await exchange.reply(200, msgspec.json.encode({"models": rows}))


async def _row(dependencies: ApiDependencies, running: RunningModel) -> dict[str, object]:
    try:
        details = model_details(await dependencies.catalog.resolve(running.name))
    except ModelError:
        # Deleted while loaded: the runner lives on until it expires.
        details = {"format": "gguf"}
    expires_at_s = running.expires_at_s
    if running.state == "stopping":
        # An expiry in the past is what clients take for a model on its way out.
        expires_at_s = dependencies.now_ns() / 1e9
    elif expires_at_s is None:
        expires_at_s = forever_after(dependencies.now_ns())
    return {
        "name": running.name,
        "model": running.name,
        "size": running.size_bytes,
        "digest": running.digest,
        "details": details,
        "expires_at": rfc3339_local(expires_at_s),
        "size_vram": running.vram_bytes,
        "context_length": running.context_length,
        "node": dependencies.node.node_name,
        "runner_id": running.runner_id,
        "device": running.device,
        "state": running.state,
        "pid": running.pid,
        "slots_total": running.slots_total,
        "slots_available": running.slots_total - running.slots_busy,
        "waiting": running.waiting,
    }

"""``GET /api/tags``: what is installed."""

from __future__ import annotations

import msgspec

from agent.models.installed import InstalledModel
from api.dependencies import ApiDependencies
from api.exchange import Exchange
from api.ollama.details import human_size, model_details
from api.times import rfc3339_local


async def tags(dependencies: ApiDependencies, exchange: Exchange) -> None:
    """All installed models, newest first."""
    installed = await dependencies.catalog.list()
    models = sorted(installed, key=lambda model: model.modified_at_s, reverse=True)
    node = dependencies.node.node_name
    await exchange.reply(
        200, msgspec.json.encode({"models": [_row(model, node) for model in models]})
    )


def _row(model: InstalledModel, node: str) -> dict[str, object]:
    return {
        "name": model.name.short,
        "model": model.name.short,
        "modified_at": rfc3339_local(model.modified_at_s),
        "size": model.size_bytes,
        "digest": model.digest,
        "details": model_details(model),
        "capabilities": sorted(model.capabilities),
        "status": "available",
        "size_human": human_size(model.size_bytes),
        "nodes": [node],
        "replicas": 1,
    }

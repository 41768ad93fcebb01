"""``GET /api/version`` and ``GET /api/v1/version``."""

from __future__ import annotations

import platform

import msgspec

from api.dependencies import ApiDependencies
from api.exchange import Exchange


async def version(dependencies: ApiDependencies, exchange: Exchange) -> None:
    """``version`` is the Ollama release whose API this is; the product's own is beside it."""
    node = dependencies.node
    runtime = f"{platform.python_implementation()} {platform.python_version()}"
    await exchange.reply(
        200,
        msgspec.json.encode(
            {
                "version": dependencies.settings.ollama_version,
                "agent_version": node.agent_version,
                "build_date": node.build_date,
                "git_commit": node.git_commit,
                "go_version": runtime,
                "python_version": platform.python_version(),
            }
        ),
    )

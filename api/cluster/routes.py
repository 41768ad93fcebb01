"""Health, metrics and version routes."""

from __future__ import annotations

from typing import Final

from api.cluster.health import health, live, ready
from api.cluster.metrics import MetricsRoutes
from api.cluster.version import version
from api.routes import Handler, Route

_READ: Final = ("GET", "HEAD")


def cluster_routes() -> tuple[Route, ...]:
    """Every route about the node itself."""
    metrics = MetricsRoutes()
    rows: tuple[tuple[str, Handler], ...] = (
        ("/health", health),
        ("/api/health", health),
        ("/api/v1/health", health),
        ("/healthz", live),
        ("/readyz", ready),
        ("/metrics", metrics.metrics),
        ("/api/distributed/metrics", metrics.metrics_json),
        ("/api/version", version),
        ("/api/v1/version", version),
    )
    return tuple(
        Route(path=path, methods=_READ, handler=handler, operation="node") for path, handler in rows
    )

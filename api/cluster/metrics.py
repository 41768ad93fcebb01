"""``GET /metrics`` and ``GET /api/distributed/metrics``: measured values only."""

from __future__ import annotations

import msgspec
import trio
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from api.cluster.host_usage import HostMeter, HostUsage
from api.dependencies import ApiDependencies
from api.errors import bad_request
from api.exchange import Exchange
from api.times import rfc3339_utc


class MetricsRoutes:
    """The metrics handlers of one application, with their meter."""

    def __init__(self) -> None:
        self._meter = HostMeter()

    async def metrics(self, dependencies: ApiDependencies, exchange: Exchange) -> None:
        """Prometheus text, or JSON by ``?format=json`` or ``Accept``."""
        wanted = exchange.query().get("format", "")
        if wanted not in ("", "json", "prometheus"):
            raise bad_request("format must be json or prometheus")
        accept = exchange.header(b"accept").lower()
        if wanted == "json" or (not wanted and _prefers_json(accept)):
            await self.metrics_json(dependencies, exchange)
            return
        usage = await self._meter.usage()
        own = CollectorRegistry(auto_describe=False)
        own.register(_ProcessCollector(dependencies, usage))
        text = generate_latest(dependencies.metrics.registry)
        await trio.lowlevel.checkpoint()
        await exchange.reply(
            200, text + generate_latest(own), content_type=CONTENT_TYPE_PLAIN_0_0_4.encode()
        )

    async def metrics_json(self, dependencies: ApiDependencies, exchange: Exchange) -> None:
        """The same figures as one JSON object."""
        usage = await self._meter.usage()
        node = dependencies.node
        now_ns = dependencies.now_ns()
        running = dependencies.inference.running()
        await exchange.reply(
            200,
            msgspec.json.encode(
                {
                    "timestamp": rfc3339_utc(now_ns),
                    "node_id": node.node_id,
                    "node_name": node.node_name,
                    "mode": "single",
                    "connected_peers": 0,
                    "is_leader": False,
                    "requests_processed": _requests_processed(dependencies),
                    "models_loaded": sum(1 for runner in running if runner.state == "ready"),
                    "nodes_total": 1,
                    "nodes_online": 1,
                    "uptime": round(now_ns / 1e9 - node.started_at_s, 3),
                    "cpu_usage": round(usage.cpu, 4),
                    "memory_usage": round(usage.memory, 4),
                    "network_usage": round(usage.network_bytes_per_s, 1),
                    "websocket_connections": 0,
                    "process_cpu_seconds": usage.process_cpu_seconds,
                    "process_resident_bytes": usage.process_resident_bytes,
                }
            ),
        )


def _prefers_json(accept: str) -> bool:
    for part in accept.split(","):
        kind = part.partition(";")[0].strip()
        if kind == "application/json":
            return True
        if kind in ("text/plain", "application/openmetrics-text", "*/*"):
            return False
    return False


def _requests_processed(dependencies: ApiDependencies) -> int:
    return round(
        sum(
            sample.value
            for family in dependencies.metrics.requests_finished.collect()
            for sample in family.samples
            if sample.name == "llamesh_requests_finished_total"
        )
    )


class _ProcessCollector(Collector):
    def __init__(self, dependencies: ApiDependencies, usage: HostUsage) -> None:
        self._dependencies = dependencies
        self._usage = usage

    def collect(self) -> list[Metric]:
        usage = self._usage
        started_at_s = self._dependencies.node.started_at_s
        return [
            CounterMetricFamily(
                "llamesh_process_cpu_seconds",
                "CPU time of the agent process, without its runners.",
                value=usage.process_cpu_seconds,
            ),
            GaugeMetricFamily(
                "llamesh_process_resident_bytes",
                "Resident memory of the agent process, without its runners.",
                value=usage.process_resident_bytes,
            ),
            GaugeMetricFamily(
                "llamesh_uptime_seconds",
                "Time since the agent started.",
                value=self._dependencies.now_ns() / 1e9 - started_at_s,
            ),
            GaugeMetricFamily("llamesh_host_cpu_ratio", "CPU use of the machine.", value=usage.cpu),
            GaugeMetricFamily(
                "llamesh_host_memory_ratio", "Memory use of the machine.", value=usage.memory
            ),
            GaugeMetricFamily(
                "llamesh_host_network_bytes_per_second",
                "Network traffic of the machine, both directions.",
                value=usage.network_bytes_per_s,
            ),
        ]

"""Every metric the agent exposes, declared in one place. Values are measured, never assumed."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Instruments of one agent, in a registry of its own so that tests can run many."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        registry = self.registry
        self.http_requests = Counter(
            "llamesh_http_requests_total",
            "Answered HTTP requests.",
            ("route", "method", "status"),
            registry=registry,
        )
        self.http_seconds = Histogram(
            "llamesh_http_request_seconds",
            "Time from request line to last byte.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.http_errors = Counter(
            "llamesh_http_errors_total",
            "HTTP requests that were refused or failed, by the code in their error.",
            ("route", "code"),
            registry=registry,
        )
        self.http_connections_refused = Counter(
            "llamesh_http_connections_refused_total",
            "Connections beyond the limit, told 503.",
            registry=registry,
        )
        self.requests_active = Gauge(
            "llamesh_requests_active", "Inference requests being served.", registry=registry
        )
        self.requests_finished = Counter(
            "llamesh_requests_finished_total",
            "Inference requests by how they ended.",
            ("model", "outcome"),
            registry=registry,
        )
        self.prompt_tokens = Counter(
            "llamesh_prompt_tokens_total", "Prompt tokens.", ("model",), registry=registry
        )
        self.cached_tokens = Counter(
            "llamesh_prompt_tokens_cached_total",
            "Prompt tokens that were already in a cache.",
            ("model",),
            registry=registry,
        )
        self.completion_tokens = Counter(
            "llamesh_completion_tokens_total", "Generated tokens.", ("model",), registry=registry
        )
        self.first_token_seconds = Histogram(
            "llamesh_first_token_seconds",
            "Time from admission to the first token.",
            ("model",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.queue_waiting = Gauge(
            "llamesh_queue_waiting", "Requests waiting for a runner.", registry=registry
        )
        self.queue_refused = Counter(
            "llamesh_queue_refused_total", "Requests refused by a full queue.", registry=registry
        )
        self.runner_slots = Gauge(
            "llamesh_runner_slots", "Slots of a runner.", ("runner", "model"), registry=registry
        )
        self.runner_slots_busy = Gauge(
            "llamesh_runner_slots_busy", "Busy slots.", ("runner", "model"), registry=registry
        )
        self.runner_cells_used = Gauge(
            "llamesh_runner_kv_cells_used",
            "KV cells in use.",
            ("runner", "model"),
            registry=registry,
        )
        self.runner_resident_bytes = Gauge(
            "llamesh_runner_resident_bytes",
            "Resident memory of the runner process.",
            ("runner", "model"),
            registry=registry,
        )
        self.runner_starts = Counter(
            "llamesh_runner_starts_total", "Runner processes started.", registry=registry
        )
        self.runner_exits = Counter(
            "llamesh_runner_exits_total",
            "Runner processes ended, by cause.",
            ("cause",),
            registry=registry,
        )
        self.load_seconds = Histogram(
            "llamesh_model_load_seconds",
            "Time to load a model.",
            buckets=_SECONDS,
            registry=registry,
        )

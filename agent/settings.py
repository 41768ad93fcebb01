"""The one validated, frozen configuration object of a node. Pure; ``agent/config.py`` fills it.

Every field is a key of ``config.toml`` and a flag of ``llamesh serve`` under its own name; the
environment variable is named in ``agent/config.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

LogLevel = Literal["debug", "info", "warning", "error"]
KvCacheType = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Effective configuration. Paths are absolute."""

    home: Path
    """Key, database, journal, config, logs, sockets, translated headers, partial downloads."""
    models: Path
    """Ollama-layout store."""
    node_name: str
    host: str = "127.0.0.1"
    port: int = 11434
    """0 means any free port."""
    auth: Literal["token", "open"] | None = None
    """Must be chosen for a bind address other than loopback."""
    admin_token: str | None = None
    origins: tuple[str, ...] = ()
    """Allowed CORS origins beyond the built-in ones."""
    log_level: LogLevel = "info"
    log_format: Literal["text", "json"] = "text"
    ollama_version: str = "0.32.15"
    """What ``/api/version`` claims, for clients that compare versions."""

    cpu_threads: int = 1
    cpu_wait: Literal["spin", "passive"] = "spin"
    """How OpenMP threads wait between steps; several agents on one machine want ``passive``."""
    context_length: int = 0
    """0 means automatic, by GPU memory."""
    keep_alive_s: float | None = 300.0
    """``None`` means forever."""
    load_timeout_s: float = 300.0
    """Longest time a load may make no progress."""
    max_loaded_models: int = 0
    """0 means automatic."""
    max_queue: int = 512
    num_parallel: int = 0
    """Slots per runner; 0 means automatic, up to 16 by KV budget."""
    kv_cache_type: KvCacheType = "f16"
    flash_attention: Literal["auto", "on", "off"] = "auto"
    gpu_overhead_bytes: int = 0
    sched_spread: bool = False
    noprune: bool = False
    go_template: bool | None = None
    """``True`` prefers Go TEMPLATE layers, ``False`` never uses them, ``None`` leaves it to each
    model."""
    host_cache_bytes: int = 1 << 30
    """RAM per runner for idle prompt caches moved out of KV."""
    grace_period_s: float = 30.0
    """How long streams may finish after SIGTERM."""
    body_limit_bytes: int = 64 * 1024 * 1024
    """Largest JSON request body."""

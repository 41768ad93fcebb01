"""Who holds a port, in words for a person."""

from __future__ import annotations

import psutil


def describe_holder(host: str, port: int) -> str:
    """Say who listens on ``port``, as far as this user may know, and what to do about it."""
    return (
        f"{host}:{port} is in use by {_holder(port)}; stop that, or choose another port with "
        f"OLLAMA_HOST={host}:{port + 1 if port < 65535 else 0} or --port"
    )


def _holder(port: int) -> str:
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.Error:
        return "another process"
    for connection in connections:
        listening = connection.status == psutil.CONN_LISTEN
        if listening and connection.laddr and connection.laddr[1] == port and connection.pid:
            return _process(connection.pid)
    return "another process (of another user, so its name is not visible)"


def _process(pid: int) -> str:
    try:
        return f"{psutil.Process(pid).name()} (pid {pid})"
    except psutil.Error:
        return f"pid {pid}"

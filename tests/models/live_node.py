"""A real node as a child process, for contract tests and benchmarks."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

READY_LIMIT_S: Final = 60.0
STOP_LIMIT_S: Final = 20.0
_POLL_S: Final = 0.05
_LOG_TAIL_BYTES: Final = 8_000
_REPOSITORY: Final = Path(__file__).resolve().parents[2]


class NodeFailed(Exception):
    """The node did not become ready or did not stop; the message ends with its log."""


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass(kw_only=True)
class LiveNode:
    """``llamesh serve`` on a free loopback port, with everything it keeps under ``home``.

    Its environment holds nothing of the caller's own ``OLLAMA_*``, ``LLAMESH_*`` or proxy
    settings. Leaving the context stops it: SIGTERM, then SIGKILL after ``STOP_LIMIT_S``.
    """

    home: Path
    models: Path
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    port: int = field(default_factory=free_port)
    ready_limit_s: float = READY_LIMIT_S
    prefix: tuple[str, ...] = ()
    """A command that execs the node, such as one that takes rights away first."""
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self.process is not None, "the node was not started"
        return self.process.pid

    @property
    def log_path(self) -> Path:
        return self.home.with_name(f"{self.home.name}.log")

    def log_tail(self) -> str:
        if not self.log_path.exists():
            return ""
        return self.log_path.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")

    def start(self) -> None:
        """Start the process without waiting for it."""
        assert self.process is None or self.process.poll() is not None, "already running"
        self.home.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, sys.executable, "-m", "agent", "serve", *self.arguments],
                cwd=_REPOSITORY,
                env=self._variables(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait_ready(self) -> None:
        """Poll ``/readyz``. Raises NodeFailed when the process ends or the limit passes."""
        assert self.process is not None, "the node was not started"
        deadline = time.monotonic() + self.ready_limit_s
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while time.monotonic() < deadline:
            code = self.process.poll()
            if code is not None:
                raise NodeFailed(f"the node ended with status {code}\n{self.log_tail()}")
            with (
                suppress(urllib.error.URLError, OSError),
                opener.open(f"{self.url}/readyz", timeout=2) as answer,
            ):
                if answer.status == 200:
                    return
            time.sleep(_POLL_S)
        raise NodeFailed(f"the node was not ready in {self.ready_limit_s} s\n{self.log_tail()}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signal the process and wait; returns its exit status. Raises NodeFailed when it had
        to be killed."""
        assert self.process is not None, "the node was not started"
        if self.process.poll() is not None:
            return self.process.returncode
        self.process.send_signal(number)
        try:
            return self.process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise NodeFailed(f"the node ignored {number.name}\n{self.log_tail()}") from None

    def __enter__(self) -> Self:
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            print(self.log_tail(), file=sys.stderr)
            self._kill()
        elif self.process is not None and self.process.poll() is None:
            self.stop()

    def _kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def _variables(self) -> dict[str, str]:
        private = ("OLLAMA_", "LLAMESH_", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(private)}
        return kept | {
            "HOME": str(self.home.parent),
            "LLAMESH_HOME": str(self.home),
            "LLAMESH_CPU_THREADS": "1",
            "LLAMESH_CPU_WAIT": "passive",
            "OLLAMA_HOST": f"127.0.0.1:{self.port}",
            "OLLAMA_MODELS": str(self.models),
            **self.environment,
        }

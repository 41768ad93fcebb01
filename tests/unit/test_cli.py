"""The command line: parsing, exit statuses, speed of ``--help``, and the small commands."""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent import __version__
from agent.cli import demo, status
from agent.cli.main import UserError, main, parser
from agent.cli.ports import describe_holder
from agent.config import FIELDS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [*os.environ]:
        if name.startswith(("OLLAMA_", "LLAMESH_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("LLAMESH_HOME", str(tmp_path))


class _Health(http.server.BaseHTTPRequestHandler):
    answer: bytes = b"{}"
    code: int = 200

    def do_GET(self) -> None:
        self.send_response(self.code if self.path == "/health" else 404)
        self.send_header("Content-Length", str(len(self.answer)))
        self.end_headers()
        self.wfile.write(self.answer)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base's name)
        pass


@contextmanager
def health_server(answer: bytes, code: int = 200) -> Generator[int]:
    handler = type("Handler", (_Health,), {"answer": answer, "code": code})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_serve_has_a_flag_for_every_setting() -> None:
    arguments = [word for field in FIELDS for word in (field.flag, "value")]
    options = parser().parse_args(["serve", *arguments])
    assert all(getattr(options, field.name) == "value" for field in FIELDS)


def test_version_is_the_projects(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out == f"llamesh {__version__}\n"


def test_a_configuration_error_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "--max-queue", "none"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("llamesh: configuration: --max-queue = 'none' (flag): ")
    assert captured.err.count("\n") == 1


def test_config_show_prints_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["config", "show", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["settings"]
    assert shown["home"] == {
        "value": str(tmp_path),
        "origin": "environment",
        "name": "LLAMESH_HOME",
    }


def test_status_prints_what_the_node_says(capsys: pytest.CaptureFixture[str]) -> None:
    with health_server(b'{"status":"healthy","models":[1]}') as port:
        assert main(["status", "--port", str(port)]) == 0
        out = capsys.readouterr().out
        assert "status               healthy" in out
        assert "[1]" in out
        assert main(["status", "--port", str(port), "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"status": "healthy", "models": [1]}


def test_status_of_an_unhealthy_node_is_1() -> None:
    with health_server(b'{"status":"draining"}', 503) as port:
        assert main(["status", "--port", str(port)]) == 1


def test_status_asks_a_node_on_every_address_through_loopback() -> None:
    with health_server(b"{}") as port:
        assert main(["status", "--host", f"0.0.0.0:{port}"]) == 0
    assert status.reachable("::") == "::1"
    assert status.reachable("::1") == "::1"
    assert status.reachable("box") == "box"


def test_status_without_a_node_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        assert main(["status", "--port", str(port)]) == 1
    assert "llamesh serve" in capsys.readouterr().err


def test_status_of_something_else_says_so() -> None:
    with health_server(b"<html>") as port, pytest.raises(UserError, match="not as a llamesh node"):
        status.ask("127.0.0.1", port)


def test_the_holder_of_a_port_is_named_with_the_way_out() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        words = describe_holder("127.0.0.1", port)
    assert f"(pid {os.getpid()})" in words
    assert f"OLLAMA_HOST=127.0.0.1:{port + 1}" in words
    assert "--port" in words


def test_the_demo_names_the_missing_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ollama", None)
    with pytest.raises(UserError, match="pip install ollama"):
        demo.run({"LLAMESH_HOME": str(tmp_path)}, {}, model="m", question=None)


def test_help_imports_nothing_heavy_and_is_quick() -> None:
    program = (
        "import sys\n"
        "from agent.cli.main import parser\n"
        "parser().format_help()\n"
        "heavy = ('trio', 'structlog', 'psutil', 'quart', 'hypercorn', 'msgspec', 'jinja2',"
        " 'prometheus_client', 'numpy', 'llama_cpp', 'asyncio')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    seconds: list[float] = []
    for _ in range(3):
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
        )
        seconds.append(time.perf_counter() - began)
        assert done.stdout.strip() == "[]"
    # 0.15 s on a quiet machine; the bound leaves room for busy ones.
    assert min(seconds) < 1.0

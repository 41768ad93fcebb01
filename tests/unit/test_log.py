"""Log lines: format, request ids, routing of library logs, and what never appears."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from agent.settings import LogLevel, Settings
from agent.telemetry import log

TOKEN = "correct-horse-battery"


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def configured(*, json_lines: bool = True, level: LogLevel = "info") -> io.StringIO:
    output = io.StringIO()
    settings = Settings(
        home=Path("/h"),
        models=Path("/m"),
        node_name="n",
        admin_token=TOKEN,
        log_level=level,
        log_format="json" if json_lines else "text",
    )
    log.configure(settings, output)
    return output


def objects(output: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in output.getvalue().splitlines()]


def test_every_line_carries_the_bound_request_id() -> None:
    output = configured()
    with structlog.contextvars.bound_contextvars(request_id="req_1"):
        structlog.get_logger().info("runner_started", pid=7)
        logging.getLogger("hypercorn.error").warning("odd %s", "thing")
    first, second = objects(output)
    assert first["event"] == "runner_started"
    assert first["pid"] == 7
    assert [first["request_id"], second["request_id"]] == ["req_1", "req_1"]
    assert (second["event"], second["level"], second["logger"]) == (
        "odd thing",
        "warning",
        "hypercorn.error",
    )


def test_the_level_filters_both_kinds_of_log() -> None:
    output = configured(level="warning")
    structlog.get_logger().info("no")
    logging.getLogger("x").info("no")
    structlog.get_logger().warning("yes")
    logging.getLogger("x").error("yes")
    assert [line["event"] for line in objects(output)] == ["yes", "yes"]


def test_configuring_again_does_not_double_lines() -> None:
    configured()
    output = configured()
    logging.getLogger("x").warning("once")
    assert len(objects(output)) == 1


def test_text_lines_are_aligned_and_cannot_be_forged() -> None:
    output = configured(json_lines=False)
    structlog.get_logger().info("started", path="/a b", note="one\n2026 fake", ratio=0.5)
    structlog.get_logger().warning("stopped\nfake")
    first, second = output.getvalue().splitlines()
    assert first.index("started") == second.index("stopped")
    assert 'path="/a b" note="one\\n2026 fake" ratio=0.5' in first
    assert "stopped\\nfake" in second


@pytest.mark.parametrize("json_lines", [True, False])
def test_secrets_never_appear(json_lines: bool) -> None:
    output = configured(json_lines=json_lines)
    structlog.get_logger().info(
        "request",
        authorization="Bearer abc123",
        user_password="hunter2",
        headers={"Cookie": "chocolate", "accept": "x"},
        text=f"header was {TOKEN}",
        tokens=5,
        prompt_tokens=6,
    )
    logging.getLogger("x").warning("got %s", TOKEN)
    text = output.getvalue()
    for hidden in ("abc123", "hunter2", "chocolate", TOKEN):
        assert hidden not in text
    assert "6" in text


def test_exceptions_are_written_with_their_trace() -> None:
    output = configured()
    try:
        raise RuntimeError(f"broken by {TOKEN}")
    except RuntimeError:
        structlog.get_logger().exception("failed")
        logging.getLogger("x").exception("failed too")
    first, second = objects(output)
    for line in (first, second):
        assert "RuntimeError: broken by [hidden]" in str(line["exception"])


def test_a_broken_format_string_is_logged_as_it_is() -> None:
    output = configured()
    logging.getLogger("x").warning("%d items", "no")
    logging.getLogger("x").warning("100%")
    assert [line["event"] for line in objects(output)] == ["%d items", "100%"]


def test_warnings_go_to_the_log() -> None:
    output = configured()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)
        warnings.warn("old thing", DeprecationWarning, stacklevel=1)
        logging.captureWarnings(capture=False)
    assert "old thing" in str(objects(output)[0]["event"])


def test_a_closed_pipe_does_not_stop_the_node() -> None:
    class Gone(io.StringIO):
        def write(self, text: str, /) -> int:
            raise BrokenPipeError

    settings = Settings(home=Path("/h"), models=Path("/m"), node_name="n")
    log.configure(settings, Gone())
    structlog.get_logger().info("unread")

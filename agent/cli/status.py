"""``llamesh status``: what a running node says about itself on ``/health``."""

from __future__ import annotations

import http.client
import ipaddress
import json
from collections.abc import Mapping
from typing import Final, cast

from agent.cli.main import UserError
from agent.config import load

TIMEOUT_S: Final = 5.0
ANSWER_LIMIT_BYTES: Final = 1 << 20


def run(environ: Mapping[str, str], flags: Mapping[str, str], *, as_json: bool) -> int:
    """Print the answer; exit status 0 if the node is healthy, 1 if not. Raises UserError."""
    # Asking needs no decision about who may use the node.
    settings = load({**environ, "LLAMESH_AUTH": "open"}, flags).settings
    host = reachable(settings.host)
    status, answer = ask(host, settings.port)
    if as_json:
        print(json.dumps(answer, indent=2, ensure_ascii=False))
    else:
        for key, value in answer.items():
            shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            print(f"{key:<20} {shown}")
    return 0 if status == http.client.OK else 1


def reachable(host: str) -> str:
    """Where to connect to a node that listens on ``host``."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "::1"
    return host


def ask(host: str, port: int) -> tuple[int, dict[str, object]]:
    """GET ``/health``: HTTP status and JSON object. Raises UserError."""
    where = f"{f'[{host}]' if ':' in host else host}:{port}"
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/health")
        response = connection.getresponse()
        body = response.read(ANSWER_LIMIT_BYTES)
    except (OSError, http.client.HTTPException) as problem:
        raise UserError(
            f"no answer from {where} ({problem}); is `llamesh serve` running?"
        ) from None
    finally:
        connection.close()
    try:
        answer: object = json.loads(body)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise UserError(
            f"{where} answered /health with {response.status}, but not as a llamesh node"
        )
    return response.status, cast("dict[str, object]", answer)

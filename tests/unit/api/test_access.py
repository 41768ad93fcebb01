"""The admin class."""

from __future__ import annotations

import httpx
import pytest

from agent.security.principal import ANONYMOUS
from api.access import ADMIN, is_loopback, may_administer, principal_for
from tests.unit.api.conftest import running_node
from tests.unit.api.scripted import settings


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("fe80::1%eth0", False),
        ("10.0.0.1", False),
        ("", False),
    ],
)
def test_loopback_addresses(address, expected):
    assert is_loopback(address) is expected


def test_made_up_credentials_are_nobodys():
    assert principal_for("Bearer made-up", settings()) == ANONYMOUS
    assert principal_for("Bearer made-up", settings(admin_token="secret")) == ANONYMOUS
    assert principal_for("Basic secret", settings(admin_token="secret")) == ANONYMOUS
    assert principal_for("bearer secret", settings(admin_token="secret")) == ADMIN


def test_without_a_token_only_this_machine_administers():
    assert may_administer(ANONYMOUS, "127.0.0.1", settings())
    assert not may_administer(ANONYMOUS, "10.0.0.1", settings())


def test_with_a_token_only_its_bearer_administers():
    closed = settings(admin_token="secret")
    assert not may_administer(ANONYMOUS, "127.0.0.1", closed)
    assert may_administer(ADMIN, "10.0.0.1", closed)


async def test_admin_paths_are_closed_by_the_token_while_inference_stays_open():
    async with (
        running_node(admin_token="secret") as node,
        httpx.AsyncClient(base_url=node.url) as http,
    ):
        refused = await http.get("/admin/users")
        assert (refused.status_code, refused.json()["code"]) == (403, "ADMIN_ONLY")
        key = {"Authorization": "Bearer secret"}
        assert (await http.get("/admin/users", headers=key)).status_code == 404
        body = {"model": "chat", "prompt": "x"}
        dummy = {"Authorization": "Bearer ollama"}
        answer = await http.post("/api/generate", json=body, headers=dummy)
        assert answer.status_code == 200

"""Who a request acts for, and who may use the admin class.

Until users and tokens exist every caller is anonymous. The admin class answers the admin token
where one is set, and otherwise loopback callers only.
"""

from __future__ import annotations

import hmac
import ipaddress

from agent.security.principal import ANONYMOUS, Principal
from agent.settings import Settings

ADMIN = Principal(name="admin", role="admin")


def is_loopback(address: str) -> bool:
    """Whether a peer address is this machine's loopback, IPv4-mapped forms included."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback


def principal_for(authorization: str, settings: Settings) -> Principal:
    """The caller behind an ``Authorization`` header.

    Unknown credentials are ignored, as client libraries send made-up keys to open servers.
    """
    if settings.admin_token:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() == "bearer" and _equal(token.strip(), settings.admin_token):
            return ADMIN
    return ANONYMOUS


def may_administer(principal: Principal, peer: str, settings: Settings) -> bool:
    """Whether the admin class answers this caller."""
    if settings.admin_token:
        return principal.role == "admin"
    return is_loopback(peer)


def _equal(left: str, right: str) -> bool:
    return hmac.compare_digest(left.encode(), right.encode())

"""Which web pages may call the API: CORS, and the guard against DNS rebinding."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Final

BUILT_IN_ORIGINS: Final = (
    *(
        f"{scheme}://{host}{port}"
        for scheme in ("http", "https")
        for host in ("localhost", "127.0.0.1", "0.0.0.0")  # noqa: S104  # an origin, not a bind
        for port in ("", ":*")
    ),
    "app://*",
    "file://*",
    "tauri://*",
    "vscode-webview://*",
    "vscode-file://*",
)
ALLOWED_HEADERS: Final = (
    "Authorization", "Content-Type", "User-Agent", "Accept", "X-Requested-With", "X-API-Key",
    "X-Request-ID", "OpenAI-Beta", "x-stainless-arch", "x-stainless-async",
    "x-stainless-custom-poll-interval", "x-stainless-helper-method", "x-stainless-lang",
    "x-stainless-os", "x-stainless-package-version", "x-stainless-poll-helper",
    "x-stainless-retry-count", "x-stainless-runtime", "x-stainless-runtime-version",
    "x-stainless-timeout",
)  # fmt: skip
EXPOSED_HEADERS: Final = ("X-Request-ID", "X-Llamesh-Node", "X-Ollama-Node", "X-Llamesh-Ignored")
PREFLIGHT_AGE_S: Final = 12 * 3600
_LOCAL_SUFFIXES: Final = (".localhost", ".local", ".internal")

Headers = list[tuple[bytes, bytes]]


class OriginPolicy:
    """The rules of one listener, prepared once so that a request costs a few look-ups.

    ``addresses`` are this machine's own IP addresses, ``hostname`` its name. The Host rule binds
    only while the listener is on loopback.
    """

    def __init__(
        self,
        *,
        origins: Iterable[str],
        loopback: bool,
        hostname: str,
        addresses: Iterable[str],
    ) -> None:
        allowed = (*BUILT_IN_ORIGINS, *(origin.strip().rstrip("/") for origin in origins))
        self._any = "*" in allowed
        exact = [origin.lower() for origin in allowed if "*" not in origin]
        self._exact = frozenset(exact)
        patterns = [_pattern(origin.lower()) for origin in allowed if "*" in origin[1:]]
        self._pattern = re.compile("|".join(patterns))
        self._loopback = loopback
        self._hostname = hostname.lower()
        self._addresses = frozenset(addresses)

    def host_allowed(self, host_header: str) -> bool:
        """Whether a Host header can be meant for this listener and not for a rebound name."""
        if not self._loopback or not host_header:
            return True
        host = split_host(host_header).rstrip(".").lower()
        if host in ("", "localhost", self._hostname) or host.endswith(_LOCAL_SUFFIXES):
            return True
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        return (
            address.is_loopback
            or address.is_private
            or address.is_unspecified
            or host in self._addresses
        )

    def origin_allowed(self, origin: str, host_header: str) -> bool:
        """Whether a page of ``origin`` may call; same-origin requests always may."""
        if self._any:
            return True
        lowered = origin.lower()
        if lowered in self._exact or self._pattern.fullmatch(lowered) is not None:
            return True
        return host_header != "" and lowered in (
            f"http://{host_header.lower()}",
            f"https://{host_header.lower()}",
        )

    def answer_headers(self, origin: str) -> Headers:
        """CORS headers of an answer to an allowed ``origin``."""
        exposed = ", ".join(EXPOSED_HEADERS).encode()
        if self._any:
            return [
                (b"access-control-allow-origin", b"*"),
                (b"access-control-expose-headers", exposed),
            ]
        return [
            (b"access-control-allow-origin", origin.encode("latin-1", "replace")),
            (b"access-control-expose-headers", exposed),
            (b"vary", b"Origin"),
        ]

    def preflight_headers(self, origin: str) -> Headers:
        """CORS headers of a preflight answer."""
        return [
            *self.answer_headers(origin),
            (b"access-control-allow-methods", b"GET, POST, PUT, PATCH, DELETE, HEAD, OPTIONS"),
            (b"access-control-allow-headers", ", ".join(ALLOWED_HEADERS).encode()),
            (b"access-control-max-age", str(PREFLIGHT_AGE_S).encode()),
        ]


def _pattern(origin: str) -> str:
    if origin.endswith(":*"):
        # A port, and nothing that continues the host name.
        return _wildcards(origin[:-2]) + r":\d+"
    return _wildcards(origin)


def _wildcards(text: str) -> str:
    return ".*".join(re.escape(part) for part in text.split("*"))


def split_host(host_header: str) -> str:
    """The host of a Host header without port and without IPv6 brackets."""
    if host_header.startswith("["):
        return host_header[1:].partition("]")[0]
    host, colon, port = host_header.rpartition(":")
    return host if colon and port.isdigit() and ":" not in host else host_header

"""The routes that are answered directly, by exact path or by a prefix with one variable part."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from urllib.parse import unquote

from api.dependencies import ApiDependencies
from api.errors import Operation
from api.exchange import Exchange

Handler = Callable[[ApiDependencies, Exchange], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One handler with the methods it answers.

    A ``path`` that ends in ``/*`` takes the rest of the path, percent-decoded, as its argument.
    ``label`` names the route in metrics and logs.
    """

    path: str
    methods: tuple[str, ...]
    handler: Handler
    operation: Operation

    @property
    def label(self) -> str:
        return self.path


@dataclass(frozen=True, slots=True)
class Match:
    """A route and the variable part of the path."""

    route: Route
    argument: str


@dataclass(frozen=True, slots=True)
class WrongMethod:
    """The path is known, the method is not."""

    allowed: tuple[str, ...]


class RouteTable:
    """Look-up by path and method; built once."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._exact: dict[str, dict[str, Match]] = {}
        self._prefixes: dict[str, dict[str, Route]] = {}
        for route in routes:
            if route.path.endswith("/*"):
                by_method = self._prefixes.setdefault(route.path[:-1], {})
                for method in route.methods:
                    by_method[method] = route
            else:
                exact = self._exact.setdefault(route.path, {})
                for method in route.methods:
                    exact[method] = Match(route, "")

    def find(self, method: str, path: str, raw_path: str) -> Match | WrongMethod | None:
        """The route of a request, or None for an unknown path."""
        exact = self._exact.get(path)
        if exact is not None:
            return exact.get(method) or WrongMethod(tuple(sorted(exact)))
        for prefix, by_method in self._prefixes.items():
            if raw_path.startswith(prefix) and len(raw_path) > len(prefix):
                route = by_method.get(method)
                if route is None:
                    return WrongMethod(tuple(sorted(by_method)))
                return Match(route, unquote(raw_path[len(prefix) :]))
        return None

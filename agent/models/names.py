"""Model names: ``[scheme://][host/][namespace/]model[:tag][:local]`` and their rules. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from agent.models.errors import InvalidName

DEFAULT_HOST: Final = "registry.ollama.ai"
DEFAULT_NAMESPACE: Final = "library"
DEFAULT_TAG: Final = "latest"
HOST_LENGTH_LIMIT: Final = 350
PART_LENGTH_LIMIT: Final = 80
LOCAL_SUFFIX: Final = ":local"
"""Written after a name to say that no hosted model is meant; no part of the name."""

_HOST: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*")
_NAMESPACE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
_PART: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class ModelName:
    """A full name. Equality is exact; ``key`` compares as the store does, without case."""

    host: str
    namespace: str
    model: str
    tag: str

    @property
    def key(self) -> str:
        """Case-folded full path, the identity under which names collide."""
        return f"{self.host}/{self.namespace}/{self.model}/{self.tag}".lower()

    @property
    def short(self) -> str:
        """Without the default host and namespace, always with the tag."""
        if self.host != DEFAULT_HOST:
            return self.full
        if self.namespace != DEFAULT_NAMESPACE:
            return f"{self.namespace}/{self.model}:{self._written_tag}"
        return f"{self.model}:{self._written_tag}"

    @property
    def full(self) -> str:
        """``host/namespace/model:tag``."""
        return f"{self.host}/{self.namespace}/{self.model}:{self._written_tag}"

    @property
    def _written_tag(self) -> str:
        # A tag that is itself called "local" gets the suffix, or it would be read as one.
        return self.tag + LOCAL_SUFFIX if _is_local(f":{self.tag}") else self.tag


def parse_name(text: str) -> ModelName:
    """Read a name and fill in the defaults.

    Raises InvalidName when a part is empty, too long or has a forbidden character.
    """
    rest = text.strip()
    scheme, separator, after = rest.partition("://")
    if separator:
        if scheme not in ("http", "https"):
            raise InvalidName(text)
        rest = after
    if _is_local(rest):
        rest = rest[: -len(LOCAL_SUFFIX)]
    path, colon, tag = rest.rpartition(":")
    if not colon or "/" in tag:
        path, tag = rest, DEFAULT_TAG
    parts = path.split("/")
    if len(parts) > 3:
        raise InvalidName(text)
    model = parts[-1]
    namespace = parts[-2] if len(parts) >= 2 else DEFAULT_NAMESPACE
    host = parts[-3] if len(parts) == 3 else DEFAULT_HOST
    name = ModelName(host, namespace, model, tag)
    if not is_valid(name):
        raise InvalidName(text)
    return name


def is_valid(name: ModelName) -> bool:
    """Whether no part is empty, too long, or has a forbidden character."""
    return (
        _fits(_HOST, name.host, HOST_LENGTH_LIMIT)
        and _fits(_NAMESPACE, name.namespace, PART_LENGTH_LIMIT)
        and _fits(_PART, name.model, PART_LENGTH_LIMIT)
        and _fits(_PART, name.tag, PART_LENGTH_LIMIT)
    )


def _is_local(text: str) -> bool:
    return text[-len(LOCAL_SUFFIX) :].lower() == LOCAL_SUFFIX


def _fits(pattern: re.Pattern[str], part: str, limit: int) -> bool:
    return len(part) <= limit and pattern.fullmatch(part) is not None

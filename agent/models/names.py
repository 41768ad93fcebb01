"""Model names: ``[scheme://][host/][namespace/]model[:tag]`` and their rules. Pure."""

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
            return f"{self.namespace}/{self.model}:{self.tag}"
        return f"{self.model}:{self.tag}"

    @property
    def full(self) -> str:
        """``host/namespace/model:tag``."""
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"


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
    path, colon, tag = rest.rpartition(":")
    if not colon or "/" in tag:
        path, tag = rest, DEFAULT_TAG
    parts = path.split("/")
    if len(parts) > 3:
        raise InvalidName(text)
    model = parts[-1]
    namespace = parts[-2] if len(parts) >= 2 else DEFAULT_NAMESPACE
    host = parts[-3] if len(parts) == 3 else DEFAULT_HOST
    valid = (
        _fits(_HOST, host, HOST_LENGTH_LIMIT)
        and _fits(_NAMESPACE, namespace, PART_LENGTH_LIMIT)
        and _fits(_PART, model, PART_LENGTH_LIMIT)
        and _fits(_PART, tag, PART_LENGTH_LIMIT)
    )
    if not valid:
        raise InvalidName(text)
    return ModelName(host, namespace, model, tag)


def _fits(pattern: re.Pattern[str], part: str, limit: int) -> bool:
    return len(part) <= limit and pattern.fullmatch(part) is not None

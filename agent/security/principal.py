"""Who a request acts for. Every request carries a principal from the first day."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["admin", "operator", "user", "readonly", "service", "anonymous"]


@dataclass(frozen=True, slots=True)
class Principal:
    """The identity and role of a caller."""

    name: str
    role: Role


ANONYMOUS = Principal(name="anonymous", role="anonymous")

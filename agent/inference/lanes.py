"""What the pool keeps of waiting requests and their runners."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

import trio

from agent.inference.admission import RunnerKey
from agent.inference.errors import InferenceError
from agent.inference.inventory import Claim
from agent.inference.memory import LoadPlan
from agent.inference.options import Options
from agent.inference.protocol import LoadProgress, ModelFacts
from agent.inference.supervisor import RunnerProcess
from agent.models.installed import InstalledModel

RunnerState = Literal["waiting", "starting", "loading", "ready", "stopping"]


@dataclass(eq=False, slots=True, kw_only=True)
class Ticket:
    """One request that waits for a runner; ends with a runner or an error, once."""

    model: InstalledModel
    options: Options
    done: trio.Event = field(default_factory=trio.Event)
    runner: PooledRunner | None = None
    error: InferenceError | None = None

    def grant(self, runner: PooledRunner) -> None:
        """End the wait with a lease."""
        self.runner = runner
        self.done.set()

    def fail(self, error: InferenceError) -> None:
        """End the wait with an error."""
        self.error = error
        self.done.set()


@dataclass(eq=False, slots=True, kw_only=True)
class PooledRunner:
    """One runner from the wish for it to its end."""

    runner_id: str
    model: InstalledModel
    options: Options
    session_s: float
    embedding: bool
    state: RunnerState = "waiting"
    plan: LoadPlan | None = None
    """Set once room is reserved."""
    promised: tuple[Claim, ...] = ()
    """What it will reserve when its turn comes."""
    process: RunnerProcess | None = None
    facts: ModelFacts | None = None
    progress: LoadProgress | None = None
    leases: int = 0
    closing: bool = False
    death: str = ""
    thread_cap: int = 0
    threads: int = 0
    last_used_s: float = 0.0
    expires_at_s: float = math.inf
    labels: tuple[str, str] | None = None
    """Under which its metrics are shown."""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    wake: trio.Event = field(default_factory=trio.Event)

    def close_when_idle(self) -> None:
        """Take no more leases and end with the last."""
        self.closing = True
        self.wake.set()

    @property
    def slots(self) -> int:
        """Sequences it serves at a time; 0 until loaded."""
        return self.facts.slots if self.facts is not None else 0


@dataclass(eq=False, slots=True)
class Lane:
    """All requests for one runner key, first come first served, and its runner if any."""

    key: RunnerKey
    runner_id: str
    tickets: deque[Ticket] = field(default_factory=deque[Ticket])
    runner: PooledRunner | None = None

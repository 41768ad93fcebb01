"""What the service needs of loaded runners, as Protocols with a real and a scripted version."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from agent.inference.options import Options
from agent.inference.protocol import Delta, Generate, ModelFacts
from agent.inference.request import KeepAlive, RunningModel
from agent.models.installed import InstalledModel


class DeltaStream(Protocol):
    """Deltas of one sequence, in order, without gap or repeat.

    Deltas that pile up while the reader is away are merged into one, so a slow reader costs
    text, never frames. The last delta has ``finish`` set; iteration ends after it. Raises
    RunnerDied when the process ends first and ClientTooSlow at the buffer limit.
    """

    def __aiter__(self) -> DeltaStream: ...

    async def __anext__(self) -> Delta: ...


class Runner(Protocol):
    """One ready runner process."""

    @property
    def facts(self) -> ModelFacts: ...

    async def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> tuple[int, ...]: ...

    async def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str: ...

    async def embed(self, inputs: Sequence[Sequence[int]]) -> tuple[tuple[float, ...], ...]:
        """One vector per input. Raises RunnerRefused or RunnerDied."""
        ...

    def generate(self, start: Generate) -> AbstractAsyncContextManager[DeltaStream]:
        """Run one sequence; ``start.sequence_id`` is replaced by one of the channel's own.
        Leaving the context cancels it if it has not finished."""
        ...


class RunnerLease(Protocol):
    """A claim on a runner: it is not evicted while any lease is held."""

    @property
    def runner(self) -> Runner: ...

    @property
    def context_length(self) -> int:
        """Tokens this request may use: its ``num_ctx`` or the automatic one, never above the
        runner's own."""
        ...

    @property
    def load_ns(self) -> int:
        """Time this caller waited for the model to load; near 0 for a warm runner."""
        ...


class RunnerSource(Protocol):
    """Hands out runners: starts, shares, queues for and evicts them."""

    def lease(
        self,
        model: InstalledModel,
        options: Options,
        *,
        keep_alive: KeepAlive | None = None,
        embedding: bool = False,
    ) -> AbstractAsyncContextManager[RunnerLease]:
        """Wait for a ready runner of ``model``.

        Raises QueueFull, InsufficientMemory, LoadFailed or LoadStalled. Cancelling the only
        waiter of a load aborts the load.
        """
        ...

    async def stop(self, model: InstalledModel) -> None:
        """Stop the model's runners as soon as they are idle; returns at once."""
        ...

    def running(self) -> tuple[RunningModel, ...]:
        """Live runners, latest expiry first."""
        ...

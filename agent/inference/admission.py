"""The pool's decisions as pure functions: who is served, what is evicted, when to try again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from agent.inference.inventory import Claim, Inventory, Reservation, without_runners
from agent.inference.memory import LoadPlan, LoadWish, Refusal, plan_load
from agent.inference.options import Options
from agent.settings import Settings

CRASH_WINDOW_S: Final = 600.0
CRASH_LIMIT: Final = 5
"""Load crashes within the window that put a model into quarantine."""
QUARANTINE_S: Final = 300.0
BACKOFF_FIRST_S: Final = 1.0
BACKOFF_LIMIT_S: Final = 30.0
RETRY_AFTER_RANGE_S: Final = (1.0, 60.0)
DEFAULT_REQUEST_S: Final = 5.0
MEMORY_WORDS: Final = (
    "out of memory",
    "outofmemory",
    "failed to allocate",
    "unable to allocate",
    "cannot allocate",
    "cudamalloc failed",
    "bad_alloc",
    "not enough memory",
    "sigkill",
)


@dataclass(frozen=True, slots=True)
class RunnerKey:
    """What a runner is started for. Two names with the same files share one."""

    weights_path: Path
    adapter_paths: tuple[Path, ...]
    embedding: bool


def serves(plan: LoadPlan, options: Options, train_context: int, layers: int) -> bool:
    """Whether a runner loaded by ``plan`` can serve ``options`` without a reload.

    A larger context or batch serves a smaller wish; what a request leaves to the agent is
    served by anything. Threads are set on a live runner and never need a reload.
    """
    wanted = min(options.num_ctx, train_context) if train_context > 0 else options.num_ctx
    if wanted <= 0 and not plan.context_is_automatic:
        # Someone asked for less than what others may expect without asking.
        wanted = plan.automatic_context
    if wanted > plan.sequence_context:
        return False
    if min(options.num_batch, plan.cells) > plan.batch:
        return False
    if plan.gpu_count:
        if options.num_gpu >= 0 and min(options.num_gpu, layers) != plan.gpu_layers:
            return False
        if options.main_gpu is not None and plan.gpu_layers and options.main_gpu != plan.main_gpu:
            return False
    return options.use_mmap is None or options.use_mmap == plan.use_mmap


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """A runner as eviction sees it."""

    runner_id: str
    busy: bool
    stoppable: bool
    """Ready; one that still loads is never a victim."""
    session_s: float
    """Its keep-alive; infinite for forever."""
    last_used_s: float
    closing: bool = False
    """Already chosen to end once idle."""


def eviction_order(residents: Sequence[Resident]) -> tuple[Resident, ...]:
    """Those that end anyway, then idle before busy, shortest session, longest unused."""
    return tuple(
        sorted(
            (r for r in residents if r.stoppable),
            key=lambda r: (not r.closing, r.busy, r.session_s, r.last_used_s, r.runner_id),
        )
    )


def choose_victims(
    residents: Sequence[Resident], fits_without: Callable[[frozenset[str]], bool]
) -> frozenset[str] | None:
    """The fewest runners, in eviction order, whose end makes room; ``None`` when the end of all
    does not. Busy ones are chosen last and are to be waited for."""
    chosen: list[str] = []
    if not fits_without(frozenset()):
        for resident in eviction_order(residents):
            chosen.append(resident.runner_id)
            if fits_without(frozenset(chosen)):
                break
        else:
            return None
    # Drop, last chosen first, what turned out not to help; so busy ones are spared first.
    for runner_id in reversed(chosen):
        rest = frozenset(chosen) - {runner_id}
        if fits_without(rest):
            chosen.remove(runner_id)
    return frozenset(chosen)


def loaded_limit(max_loaded_models: int, usable_gpus: int) -> int:
    """Runners at a time: the setting, else three per GPU, three on a machine without."""
    return max_loaded_models if max_loaded_models > 0 else 3 * max(1, usable_gpus)


def retry_after_s(waiting: int, slots: int, request_s: float) -> float:
    """When a refused caller may find room: the queue's length over the rate it shrinks at."""
    low, high = RETRY_AFTER_RANGE_S
    return min(high, max(low, waiting * request_s / max(1, slots)))


def smoothed(previous_s: float | None, sample_s: float) -> float:
    """Exponentially weighted mean of request durations."""
    return sample_s if previous_s is None else previous_s + 0.2 * (sample_s - previous_s)


def is_memory_failure(reason: str) -> bool:
    """Whether a load's failure says that memory ran out."""
    text = reason.lower()
    return any(words in text for words in MEMORY_WORDS)


@dataclass(frozen=True, slots=True)
class CrashHistory:
    """Load crashes of one model, newest last, and until when it is left alone."""

    crashes_s: tuple[float, ...] = ()
    quarantined_until_s: float = 0.0

    def crashed(self, now_s: float) -> CrashHistory:
        """One more crash."""
        recent = (*(at for at in self.crashes_s if now_s - at < CRASH_WINDOW_S), now_s)
        if len(recent) >= CRASH_LIMIT:
            return CrashHistory((), now_s + QUARANTINE_S)
        return replace(self, crashes_s=recent)

    def quarantine_left_s(self, now_s: float) -> float:
        """Seconds of quarantine left; 0 for none."""
        return max(0.0, self.quarantined_until_s - now_s)

    def retry_at_s(self, now_s: float) -> float:
        """When the next load may start: at once after one crash, then ever later."""
        recent = [at for at in self.crashes_s if now_s - at < CRASH_WINDOW_S]
        if len(recent) < 2:
            return now_s
        pause_s = min(BACKOFF_LIMIT_S, BACKOFF_FIRST_S * 2.0 ** (len(recent) - 2))
        return max(now_s, recent[-1] + pause_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What a runner that wants to start sees of the node."""

    inventory: Inventory
    reservations: tuple[Reservation, ...]
    residents: tuple[Resident, ...]
    promised: tuple[tuple[Claim, ...], ...] = ()
    """Planned claims of runners that asked for room before this one and still wait."""
    limit: int
    """Runners the node may have at a time."""


@dataclass(frozen=True, slots=True)
class Start:
    """There is room."""

    plan: LoadPlan


@dataclass(frozen=True, slots=True)
class Evict:
    """Room for ``plan`` comes once these runners have ended."""

    runner_ids: frozenset[str]
    plan: LoadPlan


@dataclass(frozen=True, slots=True)
class Wait:
    """Room can only come from runners that are loading, or from an earlier one's turn."""


def decide_room(wish: LoadWish, settings: Settings, room: Room) -> Start | Evict | Wait | Refusal:
    """Whether, and after whose end, a runner may start.

    A runner whose place is free beside everything held *and* promised starts at once, so a
    load that hangs delays nobody it does not crowd. Others wait in order: what an earlier one
    was promised is not given away, so nobody starves. A model that could lie on GPUs entirely
    evicts for it rather than fall back to the CPU.
    """
    everyone = frozenset(reservation.runner_id for reservation in room.reservations) | frozenset(
        resident.runner_id for resident in room.residents
    )
    promises = tuple(
        Reservation(runner_id=f"promise {number}", claims=claims)
        for number, claims in enumerate(room.promised)
    )

    def plan_without(ended: frozenset[str], held: tuple[Reservation, ...]) -> LoadPlan | Refusal:
        left = without_runners(room.inventory, room.reservations, ended)
        return plan_load(wish, settings, left.inventory, (*left.reservations, *held))

    alone = plan_without(everyone, ())
    if isinstance(alone, Refusal):
        return alone

    def fits_without(ended: frozenset[str]) -> bool:
        if len(everyone - ended) + len(room.promised) >= room.limit:
            return False
        plan = plan_without(ended, promises)
        return isinstance(plan, LoadPlan) and plan.gpu_layers >= alone.gpu_layers

    victims = choose_victims(room.residents, fits_without)
    if victims is None:
        return Wait()
    plan = plan_without(victims, promises)
    if isinstance(plan, LoadPlan):
        return Evict(victims, plan) if victims else Start(plan)
    raise AssertionError("the victims were chosen so that the plan exists")

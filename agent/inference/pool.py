"""The runners of this node: started on demand, shared, queued for, measured and evicted."""

from __future__ import annotations

import copy
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import chain, count
from typing import Final

import structlog
import trio

from agent.inference.admission import (
    DEFAULT_REQUEST_S,
    CrashHistory,
    Evict,
    Resident,
    Room,
    RunnerKey,
    Start,
    Wait,
    decide_room,
    is_memory_failure,
    loaded_limit,
    retry_after_s,
    serves,
    smoothed,
)
from agent.inference.devices import DeviceProbe
from agent.inference.errors import (
    InferenceError,
    InsufficientMemory,
    InvalidOption,
    LoadFailed,
    LoadStalled,
    NotAvailable,
    QueueFull,
)
from agent.inference.inventory import Claim, Inventory, Reservation, measured_reservations
from agent.inference.lanes import Lane, PooledRunner, Ticket
from agent.inference.lease import Runner
from agent.inference.memory import LOWER_CONTEXTS, LoadPlan, LoadWish, Refusal
from agent.inference.options import Options
from agent.inference.protocol import Adapter, LoadModel, LoadProgress, ModelFacts
from agent.inference.request import KeepAlive, RunningModel
from agent.inference.supervisor import LoadCrashed, RunnerHost, RunnerProcess
from agent.inference.threads import ThreadClaim, share_threads
from agent.models.installed import InstalledModel
from agent.settings import Settings
from agent.telemetry.metrics import Metrics

log = structlog.get_logger()

MEMORY_RETURN_S: Final = 5.0
"""How long a driver may take to show an ended process's memory as free."""
MEMORY_POLL_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class PooledLease:
    """A claim on a ready runner; implements ``RunnerLease``."""

    runner: Runner
    context_length: int
    load_ns: int


class RunnerPool:
    """Implements ``RunnerSource`` for one node. ``serve`` must run in the owner's nursery.

    The node is the authority on its memory: what runners may take is reserved before they
    start, measured afterwards, and its sum never exceeds a device. ``wall`` gives unix seconds
    for display only; every timer follows trio's clock.
    """

    def __init__(
        self,
        settings: Settings,
        host: RunnerHost,
        probe: DeviceProbe,
        metrics: Metrics,
        *,
        build_id: str,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._host = host
        self._probe = probe
        self._metrics = metrics
        self._build_id = build_id
        self._wall = wall
        self._lanes: dict[RunnerKey, Lane] = {}
        self._reservations: dict[str, tuple[Reservation, ...]] = {}
        self._room_queue: list[PooledRunner] = []
        self._host_id = ""
        self._capacity: dict[str, int] = {}
        self._planning = trio.Lock()
        self._news = trio.Event()
        self._crashes: dict[str, CrashHistory] = {}
        self._request_s: float | None = None
        self._memory_freed_at_s = -math.inf
        self._nursery: trio.Nursery | None = None
        self._served = trio.Event()
        self._closed = False
        metrics.queue_waiting.set_function(self.waiting)

    # -- life ----------------------------------------------------------------------------

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the runners until cancelled or closed; every process has ended on return."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._closed = True
            for lane in self._lanes.values():
                self._fail_tickets(lane, lambda _: True, _stopping())
            self._served.set()

    async def close(self, grace_s: float) -> None:
        """Refuse new leases, let held ones end for ``grace_s`` seconds, then stop everything.
        Returns once every process has ended."""
        self._closed = True
        for lane in self._lanes.values():
            self._fail_tickets(lane, lambda _: True, _stopping())
        for runner in self._runners():
            if runner.state in ("ready", "stopping"):
                runner.close_when_idle()
            else:
                runner.scope.cancel()
        with trio.move_on_after(grace_s):
            while any(True for _ in self._runners()):
                await self._next_news()
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()
            await self._served.wait()

    # -- RunnerSource --------------------------------------------------------------------

    @asynccontextmanager
    async def lease(
        self,
        model: InstalledModel,
        options: Options,
        *,
        keep_alive: KeepAlive | None = None,
        embedding: bool = False,
    ) -> AsyncGenerator[PooledLease]:
        """Wait for a ready runner of ``model`` and hold it.

        Raises QueueFull, InsufficientMemory, InvalidOption, LoadFailed, LoadStalled, or
        NotAvailable while the node stops. Cancelling the only waiter of a load aborts it.
        """
        started_s = trio.current_time()
        if self._closed or self._nursery is None:
            raise _stopping()
        key = _key(model, embedding)
        self._admit(self._lanes.get(key), options)
        lane = self._lane(key, model)
        ticket = Ticket(model=model, options=options)
        lane.tickets.append(ticket)
        self._advance(lane)
        try:
            await ticket.done.wait()
        except trio.Cancelled:
            self._withdraw(lane, ticket, self._session_s(keep_alive))
            raise
        if ticket.error is not None:
            raise copy.copy(ticket.error) from ticket.error
        runner = ticket.runner
        if runner is None or runner.plan is None or runner.facts is None or not runner.process:
            raise AssertionError("a granted ticket has a ready runner")
        granted_s = trio.current_time()
        wanted = options.num_ctx if options.num_ctx > 0 else runner.plan.automatic_context
        try:
            yield PooledLease(
                runner.process.runner,
                max(1, min(wanted, runner.facts.sequence_context)),
                round((granted_s - started_s) * 1e9),
            )
        finally:
            self._request_s = smoothed(self._request_s, trio.current_time() - granted_s)
            self._release(runner, self._session_s(keep_alive))

    async def stop(self, model: InstalledModel) -> None:
        """Stop the model's runners as soon as they are idle; returns at once."""
        for lane in self._lanes.values():
            runner = lane.runner
            if runner is None or lane.key.weights_path != model.weights_path:
                continue
            if lane.key.adapter_paths != model.adapter_paths:
                continue
            if runner.state == "ready":
                runner.close_when_idle()
            else:
                runner.session_s = 0.0
        await trio.lowlevel.checkpoint()

    def running(self) -> tuple[RunningModel, ...]:
        """Live runners, latest expiry first."""
        rows = [
            self._row(lane, lane.runner)
            for lane in self._lanes.values()
            if lane.runner is not None and lane.runner.state != "waiting"
        ]
        rows.sort(key=lambda row: math.inf if row.expires_at_s is None else row.expires_at_s)
        return tuple(reversed(rows))

    def waiting(self) -> int:
        """Requests that wait for a runner, or for a slot of theirs."""
        return sum(
            len(lane.tickets)
            + (max(0, lane.runner.leases - lane.runner.slots) if lane.runner else 0)
            for lane in self._lanes.values()
        )

    def reserved_bytes(self, device_id: str) -> int:
        """Bytes promised to runners on one device."""
        return sum(reservation.on(device_id) for reservation in self._all_reservations())

    # -- tickets -------------------------------------------------------------------------

    def _lane(self, key: RunnerKey, model: InstalledModel) -> Lane:
        lane = self._lanes.get(key)
        if lane is None:
            taken = {other.runner_id for other in self._lanes.values()}
            base = model.weights_digest.removeprefix("sha256:")[:12] + (
                "-embed" if key.embedding else ""
            )
            numbered = (f"{base}-{number}" for number in count(2))
            runner_id = next(name for name in chain((base,), numbered) if name not in taken)
            lane = self._lanes[key] = Lane(key, runner_id)
        return lane

    def _admit(self, lane: Lane | None, options: Options) -> None:
        runner = lane.runner if lane is not None else None
        served_now = (
            lane is not None
            and runner is not None
            and runner.state == "ready"
            and not runner.closing
            and not lane.tickets
            and runner.leases < runner.slots
            and self._serves(runner, options)
        )
        waiting = self.waiting()
        limit = max(1, self._settings.max_queue)
        if served_now or waiting < limit:
            return
        self._metrics.queue_refused.inc()
        slots = sum(other.slots for other in self._runners())
        request_s = DEFAULT_REQUEST_S if self._request_s is None else self._request_s
        raise QueueFull(waiting, limit, retry_after_s(waiting, slots, request_s))

    def _advance(self, lane: Lane) -> None:
        """Serve the lane's tickets in order as far as its runner can; start, reload or abort
        one where that is what they need."""
        runner = lane.runner
        if runner is None:
            if lane.tickets and not self._closed:
                self._start(lane, lane.tickets[0])
            return
        if runner.process is not None and not runner.process.alive:
            # Its requests can be here again before ``_watch`` has had its turn.
            self._note_death(runner, runner.process, "the runner process ended")
        if runner.state != "ready":
            if not lane.tickets and runner.state != "stopping":
                runner.scope.cancel()
            return
        while lane.tickets and not runner.closing:
            ticket = lane.tickets[0]
            if not self._serves(runner, ticket.options):
                # Only this lane's own order decides: later tickets wait behind the reload.
                runner.close_when_idle()
                return
            lane.tickets.popleft()
            runner.leases += 1
            runner.expires_at_s = math.inf
            runner.model = ticket.model
            if ticket.options.num_thread != runner.thread_cap:
                runner.thread_cap = ticket.options.num_thread
                self._share_threads()
            ticket.grant(runner)

    def _start(self, lane: Lane, head: Ticket) -> None:
        if self._nursery is None:
            raise AssertionError("the pool serves before it starts runners")
        runner = lane.runner = PooledRunner(
            runner_id=lane.runner_id,
            model=head.model,
            options=head.options,
            session_s=self._session_s(None),
            embedding=lane.key.embedding,
            thread_cap=head.options.num_thread,
        )
        self._nursery.start_soon(self._drive, lane, runner)

    def _withdraw(self, lane: Lane, ticket: Ticket, session_s: float) -> None:
        if ticket.runner is not None:
            self._release(ticket.runner, session_s)
        elif ticket in lane.tickets:
            lane.tickets.remove(ticket)
            self._advance(lane)

    def _release(self, runner: PooledRunner, session_s: float) -> None:
        now_s = trio.current_time()
        runner.leases -= 1
        runner.session_s = session_s
        runner.last_used_s = now_s
        if runner.leases == 0:
            runner.expires_at_s = now_s + session_s
            runner.wake.set()
            self._tell_news()

    def _fail_tickets(
        self, lane: Lane, chosen: Callable[[Ticket], bool], error: InferenceError
    ) -> None:
        failed = [ticket for ticket in lane.tickets if chosen(ticket)]
        lane.tickets = deque(ticket for ticket in lane.tickets if not chosen(ticket))
        for ticket in failed:
            ticket.fail(error)

    def _serves(self, runner: PooledRunner, options: Options) -> bool:
        if runner.plan is None:
            return False
        header = runner.model.header
        return serves(runner.plan, options, header.context_length, header.block_count + 1)

    def _session_s(self, keep_alive: KeepAlive | None) -> float:
        seconds = self._settings.keep_alive_s if keep_alive is None else keep_alive.seconds
        return math.inf if seconds is None else max(0.0, seconds)

    # -- one runner's life ---------------------------------------------------------------

    async def _drive(self, lane: Lane, runner: PooledRunner) -> None:
        error: InferenceError | None = None
        try:
            with runner.scope:
                try:
                    await self._bring_up(lane, runner)
                except InferenceError as failure:
                    error = failure
        finally:
            self._retire(lane, runner, error)

    async def _bring_up(self, lane: Lane, runner: PooledRunner) -> None:
        """Load, serve and end; retried with less where memory ran out."""
        ceiling = 0
        evicted = False
        while True:
            await self._respect_crashes(runner)
            plan = await self._claim_room(lane, runner, ceiling)
            failure = await self._run(lane, runner, plan)
            self._give_room_back(runner)
            if failure is None:
                return
            if isinstance(failure, LoadCrashed):
                digest = runner.model.weights_digest
                history = self._crashes.get(digest, CrashHistory())
                self._crashes[digest] = history.crashed(trio.current_time())
            log.warning(
                "runner_load_failed",
                runner_id=runner.runner_id,
                model=runner.model.name.short,
                phase=failure.phase,
                reason=failure.reason,
            )
            if isinstance(failure, LoadStalled) or not is_memory_failure(failure.reason):
                raise failure
            lower = next((c for c in LOWER_CONTEXTS if c < plan.sequence_context), None)
            if plan.context_is_automatic and lower is not None:
                ceiling = lower
                log.info("context_lowered", runner_id=runner.runner_id, context=lower)
            elif not evicted and await self._evict_idle(runner):
                evicted = True
            else:
                raise failure

    async def _respect_crashes(self, runner: PooledRunner) -> None:
        history = self._crashes.get(runner.model.weights_digest)
        if history is None:
            return
        now_s = trio.current_time()
        left_s = history.quarantine_left_s(now_s)
        if left_s > 0:
            raise LoadFailed(
                runner.model.name.short,
                "starting",
                f"it crashed its runner repeatedly and is left alone for {math.ceil(left_s)} s",
            )
        await trio.sleep_until(history.retry_at_s(now_s))

    async def _claim_room(self, lane: Lane, runner: PooledRunner, ceiling: int) -> LoadPlan:
        """Wait until the runner's memory is reserved. Raises InsufficientMemory or
        InvalidOption when waiting cannot help."""
        runner.state = "waiting"
        wish = LoadWish(
            header=runner.model.header,
            options=runner.options,
            embedding=lane.key.embedding,
            vision="vision" in runner.model.capabilities,
            adapter_bytes=_adapter_bytes(runner.model),
            context_ceiling=ceiling,
        )
        self._room_queue.append(runner)
        try:
            while True:
                news = self._news
                async with self._planning:
                    inventory = await self._probe.inventory()
                    self._host_id = inventory.host.id
                    self._capacity = {d.id: d.total_bytes for d in inventory.devices}
                    decision = decide_room(wish, self._settings, self._room(runner, inventory))
                    match decision:
                        case Start(plan):
                            runner.plan = plan
                            runner.state = "starting"
                            self._reservations[runner.runner_id] = (
                                Reservation(runner_id=runner.runner_id, claims=plan.claims),
                            )
                            return plan
                        case Evict(runner_ids, plan):
                            runner.promised = plan.claims
                            for other in self._runners():
                                if other.runner_id in runner_ids and not other.closing:
                                    log.info("runner_evicted", runner_id=other.runner_id)
                                    other.close_when_idle()
                        case Wait():
                            pass
                        case Refusal(kind, reason):
                            late_s = trio.current_time() - self._memory_freed_at_s
                            if kind == "option":
                                raise InvalidOption(reason)
                            if not inventory.usable_gpus or late_s >= MEMORY_RETURN_S:
                                raise InsufficientMemory(
                                    f"{runner.model.name.short} does not fit: {reason}"
                                )
                with trio.move_on_after(
                    MEMORY_POLL_S if isinstance(decision, Refusal) else math.inf
                ):
                    await news.wait()
        finally:
            runner.promised = ()
            self._room_queue.remove(runner)
            self._tell_news()

    def _room(self, runner: PooledRunner, inventory: Inventory) -> Room:
        earlier = self._room_queue[: self._room_queue.index(runner)]
        return Room(
            inventory=inventory,
            reservations=self._all_reservations(),
            residents=tuple(
                Resident(
                    runner_id=other.runner_id,
                    busy=other.leases > 0,
                    stoppable=other.state in ("ready", "stopping"),
                    session_s=other.session_s,
                    last_used_s=other.last_used_s,
                    closing=other.closing or other.state == "stopping",
                )
                for other in self._runners()
                if other.state != "waiting"
            ),
            promised=tuple(other.promised for other in earlier if other.promised),
            limit=loaded_limit(self._settings.max_loaded_models, len(inventory.usable_gpus)),
        )

    async def _run(self, lane: Lane, runner: PooledRunner, plan: LoadPlan) -> LoadFailed | None:
        """Start a process, load, serve until its end. Returns how the load failed, if it did."""
        self._share_threads()
        try:
            process = self._host.start(runner.runner_id)
        except OSError as error:
            return LoadFailed(runner.model.name.short, "starting", str(error))
        runner.process = process
        runner.state = "loading"
        self._metrics.runner_starts.inc()
        log.info("runner_started", runner_id=runner.runner_id, pid=process.pid)
        cause = "stopped"
        exit_text = ""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(process.serve)
                try:
                    failure = await self._load(runner, plan, process)
                    if failure is None:
                        nursery.start_soon(self._watch, runner, process)
                        self._advance(lane)
                        await self._keep(runner)
                    cause = "load" if failure else "died" if runner.death else "stopped"
                finally:
                    # No lease is granted from here on; it may end a while before it is gone.
                    runner.state = "stopping"
                    runner.wake.set()
                    self._share_threads()
                    with trio.CancelScope(shield=True):
                        exit_text = await process.stop()
                    nursery.cancel_scope.cancel()
        finally:
            self._metrics.runner_exits.labels(cause).inc()
            self._forget_figures(runner)
            runner.process = None
            runner.facts = None
            log.info("runner_ended", runner_id=runner.runner_id, cause=cause, exit=exit_text)
        return failure

    async def _load(
        self, runner: PooledRunner, plan: LoadPlan, process: RunnerProcess
    ) -> LoadFailed | None:
        started_s = trio.current_time()

        def note(progress: LoadProgress) -> None:
            runner.progress = progress

        try:
            facts = await process.load(
                self._load_frame(runner, plan),
                model=runner.model.name.short,
                stall_timeout_s=self._settings.load_timeout_s,
                on_progress=note,
            )
            held = await self._probe.process_bytes(process.pid)
        except LoadFailed as failure:
            return failure
        now_s = trio.current_time()
        self._metrics.load_seconds.observe(now_s - started_s)
        self._measure(runner, plan, facts, held)
        self._crashes.pop(runner.model.weights_digest, None)
        runner.facts = facts
        runner.state = "ready"
        runner.last_used_s = now_s
        runner.expires_at_s = now_s + runner.session_s
        self._show_figures(runner, process)
        self._share_threads()
        self._tell_news()
        log.info(
            "runner_ready",
            runner_id=runner.runner_id,
            model=runner.model.name.short,
            slots=facts.slots,
            cells=facts.cells,
            resident_bytes=facts.resident_bytes,
        )
        return None

    def _load_frame(self, runner: PooledRunner, plan: LoadPlan) -> LoadModel:
        return LoadModel(
            build_id=self._build_id,
            model_path=str(runner.model.weights_path),
            adapters=tuple(Adapter(str(path)) for path in runner.model.adapter_paths),
            embedding=runner.embedding,
            cells=plan.cells,
            slots=plan.slots,
            sequence_context=plan.sequence_context,
            batch=plan.batch,
            micro_batch=plan.micro_batch,
            threads=runner.threads,
            gpu_layers=plan.gpu_layers,
            main_gpu=plan.main_gpu,
            split_mode=plan.split_mode,
            tensor_split=plan.tensor_split,
            use_mmap=plan.use_mmap,
            flash_attention=plan.flash_attention,
            kv_type=plan.kv_type,
            idle_cells=plan.idle_cells,
            host_cache_bytes=plan.host_cache_bytes,
        )

    async def _keep(self, runner: PooledRunner) -> None:
        """Return when the runner has died, or is idle and unwanted."""
        while not runner.death:
            idle = runner.leases == 0
            if idle and (runner.closing or trio.current_time() >= runner.expires_at_s):
                return
            runner.wake = trio.Event()
            with trio.move_on_at(runner.expires_at_s if idle else math.inf):
                await runner.wake.wait()

    async def _watch(self, runner: PooledRunner, process: RunnerProcess) -> None:
        self._note_death(runner, process, await process.wait_ended())

    def _note_death(self, runner: PooledRunner, process: RunnerProcess, reason: str) -> None:
        """Lease a runner that died while it was ready to nobody any more."""
        if runner.state == "ready":
            runner.state = "stopping"
            runner.death = reason
            log.error("runner_died", runner_id=runner.runner_id, pid=process.pid, reason=reason)
            runner.wake.set()

    def _retire(self, lane: Lane, runner: PooledRunner, error: InferenceError | None) -> None:
        self._give_room_back(runner)
        lane.runner = None
        if error is not None:
            self._fail_tickets(lane, lambda t: _concerns(error, runner.options, t.options), error)
        if not lane.tickets:
            self._lanes.pop(lane.key, None)
        self._advance(lane)
        self._tell_news()

    async def _evict_idle(self, runner: PooledRunner) -> bool:
        """End every idle runner and wait until they are gone; False when there was none."""
        idle = [r for r in self._runners() if r is not runner and _is_idle(r)]
        for other in idle:
            other.close_when_idle()
        while any(other in idle for other in self._runners()):
            await self._next_news()
        return bool(idle)

    # -- memory and threads --------------------------------------------------------------

    def _measure(
        self, runner: PooledRunner, plan: LoadPlan, facts: ModelFacts, held: Mapping[str, int]
    ) -> None:
        """Replace the estimate by what the process really holds; the host cache still grows,
        so it stays promised."""
        sizes = dict(held)
        if facts.resident_bytes > 0:
            sizes[self._host_id] = facts.resident_bytes
        others = [r for r in self._all_reservations() if r.runner_id != runner.runner_id]
        self._reservations[runner.runner_id] = measured_reservations(
            runner.runner_id,
            plan.claims,
            sizes,
            {
                device_id: total - sum(other.on(device_id) for other in others)
                for device_id, total in self._capacity.items()
            },
            Claim(self._host_id, plan.host_cache_bytes),
        )

    def _give_room_back(self, runner: PooledRunner) -> None:
        runner.plan = None
        if self._reservations.pop(runner.runner_id, None) is not None:
            self._memory_freed_at_s = trio.current_time()
        self._share_threads()
        self._tell_news()

    def _all_reservations(self) -> tuple[Reservation, ...]:
        return tuple(r for held in self._reservations.values() for r in held)

    def _share_threads(self) -> None:
        """Divide the CPU threads anew and tell the runners whose share changed."""
        # One that stops is idle or dead: it computes nothing and cannot be told anything.
        live = [r for r in self._runners() if r.plan is not None and r.state != "stopping"]
        shares = share_threads(
            self._settings.cpu_threads,
            [
                ThreadClaim(
                    runner_id=runner.runner_id,
                    # A load cannot be told to shrink, so it starts with one and grows when ready.
                    cap=runner.thread_cap if runner.facts is not None else 1,
                    on_gpu=runner.plan is not None and runner.plan.fully_on_gpu,
                )
                for runner in live
            ],
        )
        # Shrink first, so that the sum stays within the budget at every moment.
        for runner in sorted(live, key=lambda r: shares[r.runner_id] - r.threads):
            share = shares[runner.runner_id]
            if runner.state == "starting":
                runner.threads = share
            elif runner.state == "ready" and share != runner.threads and runner.process:
                runner.threads = share
                runner.process.set_threads(share)

    # -- figures -------------------------------------------------------------------------

    def _runners(self) -> Iterator[PooledRunner]:
        return (lane.runner for lane in tuple(self._lanes.values()) if lane.runner is not None)

    def _row(self, lane: Lane, runner: PooledRunner) -> RunningModel:
        claims = [
            claim
            for reservation in self._reservations.get(runner.runner_id, ())
            if reservation.visible or runner.state != "ready"
            for claim in reservation.claims
        ]
        expires_s = runner.expires_at_s
        if runner.leases or runner.state != "ready":
            expires_s = trio.current_time() + runner.session_s
        state = runner.state
        plan = runner.plan
        return RunningModel(
            runner_id=runner.runner_id,
            name=runner.model.name.short,
            digest=runner.model.digest,
            size_bytes=sum(claim.size_bytes for claim in claims),
            vram_bytes=sum(c.size_bytes for c in claims if c.device_id != self._host_id),
            context_length=plan.sequence_context if plan else 0,
            expires_at_s=None
            if math.isinf(expires_s)
            else self._wall() + expires_s - trio.current_time(),
            device=plan.device_id if plan else "",
            slots_total=runner.slots,
            slots_busy=min(runner.leases, runner.slots),
            waiting=len(lane.tickets) + max(0, runner.leases - runner.slots),
            pid=runner.process.pid if runner.process else 0,
            state="starting" if state == "waiting" else state,
        )

    def _show_figures(self, runner: PooledRunner, process: RunnerProcess) -> None:
        labels = (runner.runner_id, runner.model.name.short)
        metrics = self._metrics
        runner.labels = labels
        metrics.runner_slots.labels(*labels).set(runner.slots)
        metrics.runner_slots_busy.labels(*labels).set_function(
            lambda: min(runner.leases, runner.slots)
        )

        def cells_used() -> float:
            statistics = process.statistics
            return statistics.cells_used if statistics is not None else 0

        def resident_bytes() -> float:
            statistics = process.statistics
            if statistics is not None:
                return statistics.resident_bytes
            return runner.facts.resident_bytes if runner.facts is not None else 0

        metrics.runner_cells_used.labels(*labels).set_function(cells_used)
        metrics.runner_resident_bytes.labels(*labels).set_function(resident_bytes)

    def _forget_figures(self, runner: PooledRunner) -> None:
        if runner.labels is None:
            return
        for gauge in (
            self._metrics.runner_slots,
            self._metrics.runner_slots_busy,
            self._metrics.runner_cells_used,
            self._metrics.runner_resident_bytes,
        ):
            gauge.remove(*runner.labels)
        runner.labels = None

    def _tell_news(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def _next_news(self) -> None:
        await self._news.wait()


def _stopping() -> NotAvailable:
    return NotAvailable("this node is stopping")


def _key(model: InstalledModel, embedding: bool) -> RunnerKey:
    # A model that cannot generate is pooled whatever is asked of it.
    pooled = embedding or "completion" not in model.capabilities
    return RunnerKey(model.weights_path, model.adapter_paths, pooled)


def _is_idle(runner: PooledRunner) -> bool:
    return runner.state == "ready" and runner.leases == 0


def _adapter_bytes(model: InstalledModel) -> int:
    return sum(path.stat().st_size for path in model.adapter_paths if path.is_file())


def _load_shape(options: Options) -> Options:
    """Only the options that shape a load; the rest at their defaults."""
    return Options(
        num_ctx=options.num_ctx,
        num_batch=options.num_batch,
        num_gpu=options.num_gpu,
        main_gpu=options.main_gpu,
        use_mmap=options.use_mmap,
    )


def _concerns(error: InferenceError, loaded: Options, waiting: Options) -> bool:
    """Whether a load's failure is also the failure of another request for the same files: bad
    weights are bad for all, too large a wish only for those who share it."""
    if isinstance(error, LoadFailed) and not is_memory_failure(error.reason):
        return True
    return _load_shape(loaded) == _load_shape(waiting)

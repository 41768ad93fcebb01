"""The engine thread: admit, build a batch, decode, sample, emit; then again.

One thread owns the context. Other threads hand it frames through ``post`` and get frames back
through ``emit``, which must not block. Whatever a step produced for all sequences leaves in one
``Step`` frame.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from agent.inference.engine.host_cache import HostCache
from agent.inference.engine.live import LiveSequence
from agent.inference.engine.sampling import GrammarDeadEnd, SequenceSampler, logprob_row
from agent.inference.engine.schedule import KvLayout, Row, Scheduler
from agent.inference.engine.sequence import ScheduledSequence, replay_window
from agent.inference.engine.statistics import EngineStatistics
from agent.inference.llama.batch import Batch
from agent.inference.llama.context import Context
from agent.inference.llama.model import Model
from agent.inference.llama.sampler import ChainSampler, GrammarRejected
from agent.inference.protocol import (
    Cancel,
    Delta,
    FinishReason,
    Frame,
    Generate,
    SetThreads,
    Step,
)
from agent.inference.text import TextAssembler

DECODED: Final = 0
NO_CELLS: Final = 1
ABORTED: Final = 2

Emit = Callable[[Frame], None]
EngineCommand = Generate | Cancel | SetThreads | None


class Engine:
    """Continuous batching over one context."""

    def __init__(
        self,
        model: Model,
        context: Context,
        emit: Emit,
        *,
        kv_unified: bool,
        prefill_budget: int,
        idle_cells: int,
        host_cache_bytes: int,
    ) -> None:
        self._model = model
        self._vocabulary = model.vocabulary
        self._context = context
        self._emit = emit
        self._batch = Batch(context.batch_capacity)
        self._chains = ChainSampler(model.vocabulary)
        self._scheduler = Scheduler(
            KvLayout(
                cells=context.cells,
                slots=context.slots,
                sequence_cells=context.sequence_cells,
                unified=kv_unified,
                can_shift=context.can_shift,
                can_rewind=model.can_rewind,
                idle_cells=idle_cells,
            ),
            context,
            HostCache(host_cache_bytes),
            batch_capacity=context.batch_capacity,
            prefill_budget=prefill_budget,
        )
        self._live: dict[int, LiveSequence] = {}
        self._inbox: queue.SimpleQueue[EngineCommand] = queue.SimpleQueue()
        self._stopping = False
        self._cancel_lock = threading.Lock()
        self._cancelled: set[int] = set()
        self._in_flight: frozenset[int] = frozenset()
        self._statistics = EngineStatistics(context.slots)

    # -- any thread ----------------------------------------------------------------------------

    def post(self, command: Generate | Cancel | SetThreads) -> None:
        """Hand over a command. A cancel that empties the running batch aborts it at once."""
        if isinstance(command, Cancel):
            with self._cancel_lock:
                self._cancelled.add(command.sequence_id)
                if self._in_flight and self._in_flight <= self._cancelled:
                    self._context.abort.set()
        self._inbox.put(command)

    def stop(self) -> None:
        """End ``run`` soon, whatever is being computed."""
        self._stopping = True
        self._context.abort.set()
        self._inbox.put(None)

    # -- the engine thread ---------------------------------------------------------------------

    def run(self) -> None:
        """Serve until ``stop``. Errors of one sequence end that sequence alone."""
        while not self._stopping:
            if not self._step():
                self._report()
                command = self._inbox.get()
                self._handle(command)

    def close(self) -> None:
        """Free samplers. The context and the model belong to the caller."""
        for live in self._live.values():
            live.sampler.close()
        self._chains.close()

    def _step(self) -> bool:
        """One step; False when there is nothing to do until the next command."""
        self._drain()
        if self._stopping:
            return False
        rows = self._scheduler.plan()
        if not rows:
            # A waiting sequence always runs once nothing else does.
            assert not self._scheduler.active, "sequences hold slots but none can run"
            self._scheduler.rest()
            self._flush()
            return bool(self._scheduler.waiting)
        self._mark_admitted()
        self._fill(rows)
        code, decode_ns = self._decode(rows)
        match code:
            case 0:
                started_ns = time.perf_counter_ns()
                self._scheduler.commit(rows)
                self._sample(rows)
                self._statistics.step(rows, decode_ns, time.perf_counter_ns() - started_ns)
            case 1:
                self._scheduler.roll_back(rows)
                if not self._scheduler.out_of_cells():
                    self._fail(rows, "the context has no room left")
            case 2:
                self._scheduler.roll_back(rows)
            case _:
                self._fail(rows, f"llama.cpp could not compute a batch (code {code})")
        self._flush()
        if self._statistics.due():
            self._report()
        return True

    def _drain(self) -> None:
        while True:
            try:
                command = self._inbox.get_nowait()
            except queue.Empty:
                return
            self._handle(command)

    def _handle(self, command: EngineCommand) -> None:
        match command:
            case Generate():
                self._begin(command)
            case Cancel(sequence_id):
                live = self._live.get(sequence_id)
                if live is not None:
                    self._end(live, "cancelled")
                    self._statistics.cancelled += 1
                with self._cancel_lock:
                    self._cancelled.discard(sequence_id)
            case SetThreads(threads):
                self._context.set_threads(threads)
            case None:
                pass

    def _begin(self, start: Generate) -> None:
        now_ns = time.perf_counter_ns()
        limit = min(
            start.context_limit or self._context.sequence_cells, self._context.sequence_cells
        )
        if not start.prompt or len(start.prompt) >= limit:
            self._refuse(start, f"a prompt of {len(start.prompt)} tokens does not fit {limit}")
            return
        if any(not 0 <= token < self._vocabulary.size for token in start.prompt + start.emitted):
            self._refuse(start, "a token is not in the vocabulary")
            return
        try:
            sampler = SequenceSampler(start.sampling, self._vocabulary, self._chains, start.grammar)
        except GrammarRejected:
            self._refuse(start, "llama.cpp refused the grammar")
            return
        if not sampler.replay(start.emitted):
            sampler.close()
            self._refuse(start, "the answer so far does not fit the grammar")
            return
        text = TextAssembler(start.stop, delivered_characters=start.emitted_characters)
        replayed = "".join(text.push(self._vocabulary.piece(token)) for token in start.emitted)
        window = replay_window(start.prompt, start.emitted, context_limit=limit, keep=start.keep)
        scheduled = ScheduledSequence(
            start.sequence_id, window, context_limit=limit, keep=start.keep, shift=start.shift
        )
        live = LiveSequence(
            start=start,
            scheduled=scheduled,
            sampler=sampler,
            text=text,
            history=[*start.prompt, *start.emitted],
            answered=len(start.emitted),
            submitted_ns=now_ns,
            new_text=replayed,
        )
        self._live[start.sequence_id] = live
        self._scheduler.submit(scheduled)
        if text.stopped:
            self._end(live, "stop")
        elif 0 <= start.predict_limit <= live.answered:
            self._end(live, "length")

    def _mark_admitted(self) -> None:
        now_ns = time.perf_counter_ns()
        for scheduled in self._scheduler.active:
            live = self._live[scheduled.id]
            if not live.admitted_ns:
                live.admitted_ns = now_ns
                self._statistics.admitted(len(live.start.prompt), scheduled.cached)

    def _fill(self, rows: Sequence[Row]) -> None:
        batch = self._batch
        batch.clear()
        for row in rows:
            sequence = row.sequence
            assert sequence.slot is not None
            if row.count == 1 and row.output:
                batch.add_token(sequence.window[row.start], row.start, sequence.slot.index)
            else:
                tokens = sequence.window[row.start : row.start + row.count]
                batch.add_run(tokens, row.start, sequence.slot.index, last_output=row.output)

    def _decode(self, rows: Sequence[Row]) -> tuple[int, int]:
        with self._cancel_lock:
            self._in_flight = frozenset(row.sequence.id for row in rows)
            if self._stopping or self._in_flight <= self._cancelled:
                self._in_flight = frozenset()
                return ABORTED, 0
            self._context.abort.clear()
        started_ns = time.perf_counter_ns()
        code = self._context.decode(self._batch)
        elapsed_ns = time.perf_counter_ns() - started_ns
        with self._cancel_lock:
            self._in_flight = frozenset()
        return code, elapsed_ns

    def _sample(self, rows: Sequence[Row]) -> None:
        outputs = [row.sequence for row in rows if row.output]
        if not outputs:
            return
        logits = self._context.logits()
        handle = self._context.handle
        assert handle is not None
        batch_row = -1
        index = 0
        for row in rows:
            batch_row += row.count
            if not row.output:
                continue
            live = self._live[row.sequence.id]
            start = live.start
            wanted = start.logprobs
            raw = logits[index].copy() if wanted >= 0 else None
            try:
                token = live.sampler.draw(
                    handle, batch_row, logits[index], live.history, live.answered
                )
            except GrammarDeadEnd:
                self._end(live, "failed", "the grammar allows no token of this model here")
            else:
                if raw is not None and token not in self._vocabulary.end_tokens:
                    live.new_logprobs.append(logprob_row(raw, token, wanted, self._vocabulary))
                self._accept(live, token)
            index += 1

    def _accept(self, live: LiveSequence, token: int) -> None:
        if not live.first_token_ns:
            live.first_token_ns = time.perf_counter_ns()
        live.drawn += 1
        self._statistics.completion_tokens += 1
        if token in self._vocabulary.end_tokens:
            self._end(live, "stop")
            return
        live.history.append(token)
        live.new_tokens.append(token)
        live.answered += 1
        live.new_text += live.text.push(self._vocabulary.piece(token))
        scheduled = live.scheduled
        self._scheduler.append(scheduled, token)
        if live.text.stopped:
            self._end(live, "stop")
        elif self._is_full(live):
            self._end(live, "length")

    def _is_full(self, live: LiveSequence) -> bool:
        """Whether the answer reached its limit, or a context that may not shift is full."""
        if 0 <= live.start.predict_limit <= live.answered:
            return True
        scheduled = live.scheduled
        return not scheduled.shift and len(scheduled.window) >= scheduled.context_limit

    # -- ends and emission ---------------------------------------------------------------------

    def _end(self, live: LiveSequence, finish: FinishReason, reason: str = "") -> None:
        if live.finish is not None:
            return
        if not live.text.stopped:
            live.new_text += live.text.finish()
        live.finish = finish
        live.reason = reason
        self._scheduler.finish(live.scheduled, keep_cache=finish != "failed")
        live.sampler.close()

    def _fail(self, rows: Sequence[Row], reason: str) -> None:
        for row in rows:
            self._end(self._live[row.sequence.id], "failed", reason)

    def _refuse(self, start: Generate, reason: str) -> None:
        self._emit(
            Step(
                deltas=(
                    Delta(start.sequence_id, len(start.emitted), (), "", "failed", reason=reason),
                )
            )
        )

    def _flush(self) -> None:
        deltas: list[Delta] = []
        ended: list[int] = []
        for sequence_id, live in self._live.items():
            if live.finish is None and not live.new_tokens and not live.new_text:
                continue
            summary = None
            if live.finish is not None:
                summary = live.summary(time.perf_counter_ns())
                ended.append(sequence_id)
            tokens = tuple(live.new_tokens)
            deltas.append(
                Delta(
                    sequence_id,
                    live.answered - len(tokens),
                    tokens,
                    live.new_text,
                    live.finish,
                    summary,
                    tuple(live.new_logprobs),
                    live.reason,
                )
            )
            live.new_tokens.clear()
            live.new_logprobs.clear()
            live.new_text = ""
        for sequence_id in ended:
            del self._live[sequence_id]
        if deltas:
            self._emit(Step(deltas=tuple(deltas)))

    def _report(self) -> None:
        self._flush()
        self._emit(
            self._statistics.frame(
                busy=len(self._scheduler.active),
                waiting=self._scheduler.waiting,
                cells_used=self._scheduler.cells_used,
                cells_cached=self._scheduler.cells_idle,
                preemptions=self._scheduler.preemptions,
            )
        )


def engine_thread(engine: Engine, on_crash: Callable[[BaseException], None]) -> threading.Thread:
    """A started thread that runs ``engine``; a bug in it is reported, never swallowed."""

    def body() -> None:
        try:
            engine.run()
        except BaseException as error:
            on_crash(error)

    thread = threading.Thread(target=body, name="engine", daemon=True)
    thread.start()
    return thread

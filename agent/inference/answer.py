"""Answering one request: runner after runner until the answer is finished."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import structlog
import trio

from agent.inference.continuation import (
    RUNNERS_PER_REQUEST_LIMIT,
    AnswerLedger,
    SequenceBroken,
    Stopwatch,
)
from agent.inference.errors import RunnerDied, RunnerRefused
from agent.inference.lease import RunnerLease, RunnerSource
from agent.inference.options import Options
from agent.inference.prompt_preparation import PreparedPrompt
from agent.inference.protocol import Delta, Generate, LogprobRow, ModelFacts, Sampling
from agent.inference.request import (
    Candidate,
    DoneReason,
    EventStream,
    Finished,
    GenerateEvent,
    GenerateRequest,
    TextDelta,
    TextPrompt,
    TokenLogprob,
)
from agent.models.installed import InstalledModel

PREDICT_LIMIT_CONTEXTS: Final = 10
"""An answer ends after this many contexts, whatever limit it was given."""
RUNNER_LOST: Final = "the runner ended while it was serving this request"
_log: structlog.stdlib.BoundLogger = structlog.get_logger()

Ending = tuple[TextDelta, Finished]
"""The last text and the end, where they come together."""
Sender = trio.MemorySendChannel[GenerateEvent | Ending | Exception]
Receiver = trio.MemoryReceiveChannel[GenerateEvent | Ending | Exception]


def now_ns() -> int:
    """Nanoseconds on the clock that trio's deadlines use."""
    return int(trio.current_time() * 1e9)


class Events:
    """The reader's end of one request."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._end: Finished | None = None

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> GenerateEvent:
        end = self.end()
        if end is not None:
            await trio.lowlevel.checkpoint()
            return end
        try:
            event = await self._receiver.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None
        if isinstance(event, Exception):
            raise event
        if isinstance(event, tuple):
            event, self._end = event
        return event

    def end(self) -> Finished | None:
        """See EventStream."""
        end, self._end = self._end, None
        return end


@dataclass(slots=True, kw_only=True)
class Answer:
    """One request being answered, by as many runners as it takes.

    Its fields are everything the request has come to: what its log line and its last event
    tell. ``prepare`` makes the prompt with the first runner's tokenizer.
    """

    request: GenerateRequest
    model: InstalledModel
    options: Options
    grammar: str
    seed: int
    started_ns: int
    runners: RunnerSource
    prepare: Callable[[RunnerLease], Awaitable[PreparedPrompt]]
    ledger: AnswerLedger = field(default_factory=AnswerLedger)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    prompt: PreparedPrompt | None = None
    context_length: int = 0
    load_ns: int = 0
    runners_lost: int = 0
    cached_tokens: int = 0
    first_token_ns: int | None = None
    held_text: str = ""
    """Text of the runner's last delta, which goes out with the end."""
    held_tokens: list[int] = field(default_factory=list[int])
    """Tokens whose text has not come yet; they go out with it."""
    held_logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    opened: trio.Event = field(default_factory=trio.Event)
    """Set once the stream can be read or has failed."""
    failure: Exception | None = None
    outcome: str = "cancelled"

    async def serve(self, sender: Sender) -> None:
        """Answer the request; what goes wrong reaches the reader in the same order."""
        with sender:
            try:
                finished = await self._answer(sender)
                last = self._held()
                self.outcome = finished.reason
                await sender.send(finished if last is None else (last, finished))
            except Exception as error:
                self.outcome = "failed"
                self.failure = error
                if self.opened.is_set():
                    await sender.send(error)
                else:
                    self.opened.set()

    async def _answer(self, sender: Sender) -> Finished:
        """Go from runner to runner until one finishes the answer."""
        while True:
            try:
                return await self._answer_on_one_runner(sender)
            except (RunnerDied, SequenceBroken) as error:
                self.stopwatch.stop_observed(now_ns())
                self.runners_lost += 1
                _log.warning(
                    "runner_lost",
                    request_id=self.request.request_id,
                    model=self.model.name.short,
                    emitted_tokens=len(self.ledger.tokens),
                    runners_lost=self.runners_lost,
                    reason=str(error),
                )
                if self.runners_lost >= RUNNERS_PER_REQUEST_LIMIT:
                    raise RunnerDied(RUNNER_LOST) from error

    async def _answer_on_one_runner(self, sender: Sender) -> Finished:
        request = self.request
        async with self.runners.lease(
            self.model, self.options, keep_alive=request.keep_alive
        ) as lease:
            self.load_ns += lease.load_ns
            prompt = self.prompt
            if prompt is None:
                prompt = await self.prepare(lease)
                self.prompt = prompt
                self.context_length = lease.context_length
            self.stopwatch.start(now_ns())
            start = self._frame(prompt, lease)
            async with lease.runner.generate(start) as deltas:
                self.opened.set()
                async for delta in deltas:
                    finished = await self._take(prompt, delta, sender)
                    if finished is not None:
                        return finished
        raise RunnerDied("the runner's answer ended without its last delta")

    async def _take(self, prompt: PreparedPrompt, delta: Delta, sender: Sender) -> Finished | None:
        at_ns = now_ns()
        ledger = self.ledger
        ledger.accept(delta)
        if delta.tokens:
            self.stopwatch.observe(at_ns)
            if self.first_token_ns is None:
                self.first_token_ns = at_ns
            self.held_tokens.extend(delta.tokens)
        if delta.logprobs:
            self.held_logprobs.extend(map(_token_logprob, delta.logprobs))
        if delta.text:
            self.held_text += delta.text
            if delta.finish is None:
                await self._flush(sender)
        if delta.finish is None:
            if not ledger.stuck:
                return None
            self.stopwatch.stop_observed(at_ns)
            return self._finished(prompt, "stop")
        if delta.finish not in ("stop", "length"):
            await self._flush(sender)
            raise RunnerRefused(delta.reason or f"the runner ended the answer: {delta.finish}")
        if delta.summary is None:
            self.stopwatch.stop_observed(at_ns)
        else:
            self.stopwatch.stop_reported(delta.summary.prompt_ns, delta.summary.eval_ns)
            self.cached_tokens = min(delta.summary.cached_tokens, len(prompt.tokens))
        return self._finished(prompt, delta.finish)

    def _finished(self, prompt: PreparedPrompt, reason: DoneReason) -> Finished:
        asked = self.request.prompt
        is_raw = isinstance(asked, TextPrompt) and asked.raw
        return Finished(
            reason=reason,
            prompt_tokens=len(prompt.tokens),
            cached_tokens=self.cached_tokens,
            completion_tokens=len(self.ledger.tokens),
            total_ns=now_ns() - self.started_ns,
            load_ns=self.load_ns,
            prompt_ns=self.stopwatch.prompt_ns,
            eval_ns=self.stopwatch.eval_ns,
            context=() if is_raw else (*prompt.tokens, *self.ledger.tokens),
        )

    def _frame(self, prompt: PreparedPrompt, lease: RunnerLease) -> Generate:
        request, options = self.request, self.options
        # A later runner may be smaller, never roomier than what the prompt was fitted to.
        context = min(self.context_length, lease.context_length)
        keep = kept_tokens(options, lease.runner.facts)
        most = PREDICT_LIMIT_CONTEXTS * self.context_length
        limit = most if options.num_predict < 0 else min(options.num_predict, most)
        return Generate(
            sequence_id=0,
            prompt=prompt.tokens,
            sampling=Sampling(
                seed=self.seed,
                temperature=options.temperature,
                top_k=options.top_k,
                top_p=options.top_p,
                min_p=options.min_p,
                typical_p=options.typical_p,
                repeat_last_n=options.repeat_last_n
                if options.repeat_last_n >= 0
                else self.context_length,
                repeat_penalty=options.repeat_penalty,
                presence_penalty=options.presence_penalty,
                frequency_penalty=options.frequency_penalty,
            ),
            predict_limit=limit,
            emitted=tuple(self.ledger.tokens),
            emitted_characters=self.ledger.characters,
            context_limit=context,
            keep=len(prompt.tokens) if keep < 0 else keep,
            shift=request.shift and lease.runner.facts.can_shift,
            stop=options.stop,
            grammar=self.grammar,
            logprobs=request.top_logprobs if request.logprobs else -1,
        )

    async def _flush(self, sender: Sender) -> None:
        """Send what is held, if anything is."""
        event = self._held()
        if event is not None:
            await sender.send(event)

    def _held(self) -> TextDelta | None:
        """Text with the tokens it came from, taken out to be sent."""
        if not (self.held_text or self.held_tokens or self.held_logprobs):
            return None
        event = TextDelta(self.held_text, tuple(self.held_tokens), tuple(self.held_logprobs))
        self.held_text = ""
        self.held_tokens.clear()
        self.held_logprobs.clear()
        return event


def kept_tokens(options: Options, facts: ModelFacts) -> int:
    """Tokens in front that shifts and cuts spare; the beginning-of-sequence token is kept
    besides ``num_keep``."""
    return options.num_keep + 1 if facts.add_bos and options.num_keep >= 0 else options.num_keep


def _token_logprob(row: LogprobRow) -> TokenLogprob:
    return TokenLogprob(Candidate(*row.chosen), tuple(Candidate(*item) for item in row.top))

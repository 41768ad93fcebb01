"""One node's inference: from a request to a prompt, a runner, and events."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Protocol, TypeVar

import structlog
import trio

from agent.inference.chat.render import RenderContext
from agent.inference.continuation import (
    RUNNERS_PER_REQUEST_LIMIT,
    AnswerLedger,
    SequenceBroken,
    Stopwatch,
)
from agent.inference.embedding import embed_texts
from agent.inference.errors import NotAvailable, RunnerDied, RunnerRefused, UnsupportedCapability
from agent.inference.grammar import grammar_for
from agent.inference.lease import RunnerLease, RunnerSource
from agent.inference.options import DEFAULT_OPTIONS, Options, OptionValue, apply_options
from agent.inference.prompt_preparation import PreparedPrompt, prepare_prompt
from agent.inference.protocol import Delta, Generate, LogprobRow, ModelFacts, Sampling
from agent.inference.request import (
    Candidate,
    ChatPrompt,
    DoneReason,
    EmbedRequest,
    EmbedResult,
    EventStream,
    Finished,
    GenerateEvent,
    GenerateRequest,
    KeepAlive,
    OutputFormat,
    RunningModel,
    TextDelta,
    TokenLogprob,
)
from agent.models.installed import InstalledModel
from agent.telemetry.metrics import Metrics

PREDICT_LIMIT_CONTEXTS: Final = 10
"""An answer ends after this many contexts, whatever limit it was given."""
RUNNER_LOST: Final = "the runner ended while it was serving this request"
_SEED_MASK: Final = (1 << 64) - 1
_Result = TypeVar("_Result")
_log: structlog.stdlib.BoundLogger = structlog.get_logger()


class ModelResolver(Protocol):
    """Finds models by the name a client wrote."""

    async def resolve(self, name: str) -> InstalledModel:
        """Raises InvalidName or ModelNotFound."""
        ...


@dataclass(slots=True, kw_only=True)
class _Progress:
    """Everything one request has come to: what its log line and its last event tell."""

    request: GenerateRequest
    model: InstalledModel
    options: Options
    grammar: str
    seed: int
    started_ns: int
    ledger: AnswerLedger = field(default_factory=AnswerLedger)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    prompt: PreparedPrompt | None = None
    context_length: int = 0
    load_ns: int = 0
    runners: int = 0
    cached_tokens: int = 0
    first_token_ns: int | None = None
    held_tokens: list[int] = field(default_factory=list[int])
    """Tokens whose text has not come yet; they go out with it."""
    held_logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    opened: trio.Event = field(default_factory=trio.Event)
    """Set once the stream can be read or has failed."""
    failure: Exception | None = None
    outcome: str = "cancelled"


_Sender = trio.MemorySendChannel[GenerateEvent | Exception]
_Receiver = trio.MemoryReceiveChannel[GenerateEvent | Exception]


class _Events:
    """The reader's end of one request."""

    def __init__(self, receiver: _Receiver) -> None:
        self._receiver = receiver

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> GenerateEvent:
        try:
            event = await self._receiver.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None
        if isinstance(event, Exception):
            raise event
        return event


class LocalInference:
    """InferenceService over the runners of this node.

    ``rng`` draws the seed of requests that ask for none; ``wall_clock`` is the date templates
    print; ``go_template`` is the setting of that name; ``grammar`` turns a format into GBNF.
    """

    def __init__(
        self,
        *,
        models: ModelResolver,
        runners: RunnerSource,
        metrics: Metrics,
        rng: random.Random,
        wall_clock: Callable[[], datetime],
        go_template: bool | None = None,
        grammar: Callable[[OutputFormat], str] = grammar_for,
    ) -> None:
        self._models = models
        self._runners = runners
        self._metrics = metrics
        self._rng = rng
        self._wall_clock = wall_clock
        self._go_template = go_template
        self._grammar = grammar

    # -- generation --

    @asynccontextmanager
    async def generate(self, request: GenerateRequest) -> AsyncGenerator[EventStream]:
        """Open a stream of events; see InferenceService.

        A task of its own holds the runner: a continued answer gives one runner back and takes
        another, which must not cross the cancel scopes the reader is in at that moment.
        """
        started_ns = _now_ns()
        model = await self._models.resolve(request.model)
        progress = self._begin(request, model, started_ns)
        sender, receiver = trio.open_memory_channel[GenerateEvent | Exception](0)
        failure: BaseException | None = None
        self._metrics.requests_active.inc()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._serve, progress, sender)
                # Errors leave the nursery as values, since it would wrap them in a group.
                try:
                    await progress.opened.wait()
                    failure = progress.failure
                    if failure is None:
                        yield _Events(receiver)
                except BaseException as error:
                    failure = error
                nursery.cancel_scope.cancel()
            if failure is not None:
                raise failure
        finally:
            receiver.close()
            self._metrics.requests_active.dec()
            self._report(progress)

    def _begin(self, request: GenerateRequest, model: InstalledModel, started: int) -> _Progress:
        """Everything that can be refused without loading the model."""
        _check_capabilities(request, model)
        options = _options(model, request.options)
        grammar = "" if request.format is None else self._grammar(request.format)
        seed = self._rng.getrandbits(64) if options.seed == -1 else options.seed & _SEED_MASK
        return _Progress(
            request=request,
            model=model,
            options=options,
            grammar=grammar,
            seed=seed,
            started_ns=started,
        )

    async def _serve(self, progress: _Progress, sender: _Sender) -> None:
        """Answer the request; what goes wrong reaches the reader in the same order."""
        with sender:
            try:
                finished = await self._answer(progress, sender)
                await _flush(progress, sender)
                progress.outcome = finished.reason
                await sender.send(finished)
            except Exception as error:
                progress.outcome = "failed"
                progress.failure = error
                if progress.opened.is_set():
                    await sender.send(error)
                else:
                    progress.opened.set()

    async def _answer(self, progress: _Progress, sender: _Sender) -> Finished:
        """Go from runner to runner until one finishes the answer."""
        while True:
            try:
                return await self._answer_on_one_runner(progress, sender)
            except (RunnerDied, SequenceBroken) as error:
                progress.stopwatch.stop_observed(_now_ns())
                progress.runners += 1
                _log.warning(
                    "runner_lost",
                    request_id=progress.request.request_id,
                    model=progress.model.name.short,
                    emitted_tokens=len(progress.ledger.tokens),
                    runners_lost=progress.runners,
                    reason=str(error),
                )
                if progress.runners >= RUNNERS_PER_REQUEST_LIMIT:
                    raise RunnerDied(RUNNER_LOST) from error

    async def _answer_on_one_runner(self, progress: _Progress, sender: _Sender) -> Finished:
        request = progress.request
        async with self._runners.lease(
            progress.model, progress.options, keep_alive=request.keep_alive
        ) as lease:
            progress.load_ns += lease.load_ns
            prompt = progress.prompt
            if prompt is None:
                prompt = await self._prepare(request, progress.model, progress.options, lease)
                progress.prompt = prompt
                progress.context_length = lease.context_length
            progress.stopwatch.start(_now_ns())
            start = _generate_frame(progress, prompt, lease)
            async with lease.runner.generate(start) as deltas:
                progress.opened.set()
                async for delta in deltas:
                    finished = await self._take(progress, prompt, delta, sender)
                    if finished is not None:
                        return finished
        raise RunnerDied("the runner's answer ended without its last delta")

    async def _take(
        self, progress: _Progress, prompt: PreparedPrompt, delta: Delta, sender: _Sender
    ) -> Finished | None:
        now_ns = _now_ns()
        ledger = progress.ledger
        ledger.accept(delta)
        if delta.tokens:
            progress.stopwatch.observe(now_ns)
            if progress.first_token_ns is None:
                progress.first_token_ns = now_ns
            progress.held_tokens.extend(delta.tokens)
        if delta.logprobs:
            progress.held_logprobs.extend(map(_token_logprob, delta.logprobs))
        if delta.text:
            await _flush(progress, sender, delta.text)
        if delta.finish is None:
            if not ledger.stuck:
                return None
            progress.stopwatch.stop_observed(now_ns)
            return self._finished(progress, prompt, "stop")
        if delta.finish not in ("stop", "length"):
            raise RunnerRefused(delta.reason or f"the runner ended the answer: {delta.finish}")
        if delta.summary is None:
            progress.stopwatch.stop_observed(now_ns)
        else:
            progress.stopwatch.stop_reported(delta.summary.prompt_ns, delta.summary.eval_ns)
            progress.cached_tokens = min(delta.summary.cached_tokens, len(prompt.tokens))
        return self._finished(progress, prompt, delta.finish)

    def _finished(
        self, progress: _Progress, prompt: PreparedPrompt, reason: DoneReason
    ) -> Finished:
        return Finished(
            reason=reason,
            prompt_tokens=len(prompt.tokens),
            cached_tokens=progress.cached_tokens,
            completion_tokens=len(progress.ledger.tokens),
            total_ns=_now_ns() - progress.started_ns,
            load_ns=progress.load_ns,
            prompt_ns=progress.stopwatch.prompt_ns,
            eval_ns=progress.stopwatch.eval_ns,
            context=(*prompt.tokens, *progress.ledger.tokens),
        )

    async def _prepare(
        self,
        request: GenerateRequest,
        model: InstalledModel,
        options: Options,
        lease: RunnerLease,
    ) -> PreparedPrompt:
        return await prepare_prompt(
            lease.runner,
            model,
            request,
            self._rendering(lease.runner.facts),
            context_length=lease.context_length,
            keep=options.num_keep,
        )

    def _rendering(self, facts: ModelFacts) -> RenderContext:
        return RenderContext(
            now=self._wall_clock(),
            bos_text=facts.bos_text,
            eos_text=facts.eos_text,
            go_template=self._go_template,
        )

    def _report(self, progress: _Progress) -> None:
        """Metrics and the one log line of a request, whichever way it ended."""
        name = progress.model.name.short
        metrics = self._metrics
        prompt_tokens = 0 if progress.prompt is None else len(progress.prompt.tokens)
        completion_tokens = len(progress.ledger.tokens)
        metrics.requests_finished.labels(name, progress.outcome).inc()
        metrics.prompt_tokens.labels(name).inc(prompt_tokens)
        metrics.cached_tokens.labels(name).inc(progress.cached_tokens)
        metrics.completion_tokens.labels(name).inc(completion_tokens)
        first_token_ms = None
        if progress.first_token_ns is not None:
            waited_ns = progress.first_token_ns - progress.started_ns
            metrics.first_token_seconds.labels(name).observe(waited_ns / 1e9)
            first_token_ms = waited_ns // 1_000_000
        _log.info(
            "request_finished",
            request_id=progress.request.request_id,
            principal=progress.request.principal.name,
            model=name,
            outcome=progress.outcome,
            error=type(progress.failure).__name__ if progress.failure else None,
            prompt_tokens=prompt_tokens,
            cached_tokens=progress.cached_tokens,
            completion_tokens=completion_tokens,
            dropped_messages=progress.prompt.dropped_messages if progress.prompt else 0,
            cut_tokens=progress.prompt.cut_tokens if progress.prompt else 0,
            runners_lost=progress.runners,
            load_ms=progress.load_ns // 1_000_000,
            first_token_ms=first_token_ms,
            total_ms=(_now_ns() - progress.started_ns) // 1_000_000,
        )

    async def render(self, request: GenerateRequest) -> str:
        """The prompt text ``generate`` would send; loads the model for its tokenizer.

        Messages that would be dropped are missing here too; tokens cut from the middle are not.
        """
        model = await self._models.resolve(request.model)
        _check_capabilities(request, model)
        options = _options(model, request.options)

        async def prepared(lease: RunnerLease) -> str:
            prompt = await self._prepare(request, model, options, lease)
            if isinstance(request.prompt, ChatPrompt) or not request.prompt.context:
                return prompt.text
            earlier = await lease.runner.detokenize(request.prompt.context, special=True)
            return earlier + prompt.text

        return await self._with_runner(model, options, request.keep_alive, False, prepared)

    # -- embeddings --

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """Vectors for all inputs; none just loads the model. See InferenceService."""
        started_ns = _now_ns()
        model = await self._models.resolve(request.model)
        options = _options(model, request.options)

        async def embedded(lease: RunnerLease) -> EmbedResult:
            vectors, tokens = await embed_texts(
                lease.runner,
                request.inputs,
                context_length=lease.context_length,
                truncate=request.truncate,
                dimensions=request.dimensions,
            )
            return EmbedResult(
                vectors=vectors,
                prompt_tokens=tokens,
                total_ns=_now_ns() - started_ns,
                load_ns=lease.load_ns,
            )

        outcome = "cancelled"
        self._metrics.requests_active.inc()
        result: EmbedResult | None = None
        try:
            result = await self._with_runner(model, options, request.keep_alive, True, embedded)
        except Exception:
            outcome = "failed"
            raise
        else:
            outcome = "stop"
            return result
        finally:
            self._metrics.requests_active.dec()
            self._report_embedding(request, model, outcome, result, _now_ns() - started_ns)

    def _report_embedding(
        self,
        request: EmbedRequest,
        model: InstalledModel,
        outcome: str,
        result: EmbedResult | None,
        total_ns: int,
    ) -> None:
        name = model.name.short
        tokens = 0 if result is None else result.prompt_tokens
        self._metrics.requests_finished.labels(name, outcome).inc()
        self._metrics.prompt_tokens.labels(name).inc(tokens)
        _log.info(
            "embedding_finished",
            request_id=request.request_id,
            principal=request.principal.name,
            model=name,
            outcome=outcome,
            inputs=len(request.inputs),
            prompt_tokens=tokens,
            total_ms=total_ns // 1_000_000,
        )

    # -- loading --

    async def load(
        self, model: str, options: Mapping[str, OptionValue], keep_alive: KeepAlive | None
    ) -> int:
        """Load without generating; returns the nanoseconds it took."""
        installed = await self._models.resolve(model)
        resolved = _options(installed, options)
        encoder_only = "completion" not in installed.capabilities
        async with self._runners.lease(
            installed, resolved, keep_alive=keep_alive, embedding=encoder_only
        ) as lease:
            return lease.load_ns

    async def unload(self, model: str) -> None:
        """Stop the model's runners once idle; a model that is not loaded is no error."""
        await self._runners.stop(await self._models.resolve(model))

    def running(self) -> tuple[RunningModel, ...]:
        """Live runners, latest expiry first."""
        return self._runners.running()

    async def _with_runner(
        self,
        model: InstalledModel,
        options: Options,
        keep_alive: KeepAlive | None,
        embedding: bool,
        work: Callable[[RunnerLease], Awaitable[_Result]],
    ) -> _Result:
        """``work`` on a leased runner, once more on another when the first one dies."""
        lost = 0
        while True:
            try:
                async with self._runners.lease(
                    model, options, keep_alive=keep_alive, embedding=embedding
                ) as lease:
                    return await work(lease)
            except RunnerDied:
                lost += 1
                if lost >= RUNNERS_PER_REQUEST_LIMIT:
                    raise


def _now_ns() -> int:
    return int(trio.current_time() * 1e9)


async def _flush(progress: _Progress, sender: _Sender, text: str = "") -> None:
    """Send ``text`` with the tokens it came from, or what is left of them at the end."""
    if not text and not progress.held_tokens and not progress.held_logprobs:
        return
    event = TextDelta(text, tuple(progress.held_tokens), tuple(progress.held_logprobs))
    progress.held_tokens.clear()
    progress.held_logprobs.clear()
    await sender.send(event)


def _options(model: InstalledModel, overrides: Mapping[str, OptionValue]) -> Options:
    return apply_options(apply_options(DEFAULT_OPTIONS, model.parameters), overrides)


def _check_capabilities(request: GenerateRequest, model: InstalledModel) -> None:
    chat = isinstance(request.prompt, ChatPrompt)
    if "completion" not in model.capabilities:
        raise UnsupportedCapability(request.model, "chat" if chat else "generate")
    if isinstance(request.prompt, ChatPrompt):
        if any(message.images for message in request.prompt.messages):
            if "vision" not in model.capabilities:
                raise UnsupportedCapability(model.name.full, "vision")
            raise NotAvailable("images cannot be read yet")
    elif request.prompt.suffix and "insert" not in model.capabilities:
        raise UnsupportedCapability(model.name.full, "insert")


def _generate_frame(progress: _Progress, prompt: PreparedPrompt, lease: RunnerLease) -> Generate:
    request, options = progress.request, progress.options
    # A later runner may be smaller, never roomier than what the prompt was fitted to.
    context = min(progress.context_length, lease.context_length)
    most = PREDICT_LIMIT_CONTEXTS * progress.context_length
    limit = most if options.num_predict < 0 else min(options.num_predict, most)
    return Generate(
        sequence_id=0,
        prompt=prompt.tokens,
        sampling=Sampling(
            seed=progress.seed,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            min_p=options.min_p,
            typical_p=options.typical_p,
            repeat_last_n=options.repeat_last_n
            if options.repeat_last_n >= 0
            else progress.context_length,
            repeat_penalty=options.repeat_penalty,
            presence_penalty=options.presence_penalty,
            frequency_penalty=options.frequency_penalty,
        ),
        predict_limit=limit,
        emitted=tuple(progress.ledger.tokens),
        emitted_characters=progress.ledger.characters,
        context_limit=context,
        keep=options.num_keep,
        shift=request.shift and lease.runner.facts.can_shift,
        stop=options.stop,
        grammar=progress.grammar,
        logprobs=request.top_logprobs if request.logprobs else -1,
    )


def _token_logprob(row: LogprobRow) -> TokenLogprob:
    return TokenLogprob(Candidate(*row.chosen), tuple(Candidate(*item) for item in row.top))

"""One node's inference: from a request to a prompt, a runner, and events."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from typing import Final, Protocol, TypeVar

import structlog
import trio

from agent.inference.answer import Answer, Ending, Events, kept_tokens, now_ns
from agent.inference.chat.jinja_template import COMPILED_LIMIT
from agent.inference.chat.render import RenderContext, choose_template
from agent.inference.continuation import (
    RUNNERS_PER_REQUEST_LIMIT,
)
from agent.inference.embedding import embed_texts
from agent.inference.errors import NotAvailable, RunnerDied, UnsupportedCapability
from agent.inference.grammar import grammar_for
from agent.inference.lease import RunnerLease, RunnerSource
from agent.inference.options import DEFAULT_OPTIONS, Options, OptionValue, apply_options
from agent.inference.prompt_preparation import PreparedPrompt, prepare_prompt
from agent.inference.protocol import ModelFacts
from agent.inference.request import (
    ChatPrompt,
    EmbedRequest,
    EmbedResult,
    EventStream,
    GenerateEvent,
    GenerateRequest,
    KeepAlive,
    OutputFormat,
    RunningModel,
)
from agent.models.installed import InstalledModel
from agent.telemetry.metrics import Metrics

INLINE_COMPILE_CHARACTERS: Final = 2048
"""Templates up to this length compile in a few milliseconds and need no thread."""
_SEED_MASK: Final = (1 << 64) - 1
_Result = TypeVar("_Result")
_log: structlog.stdlib.BoundLogger = structlog.get_logger()


class ModelResolver(Protocol):
    """Finds models by the name a client wrote."""

    async def resolve(self, name: str) -> InstalledModel:
        """Raises InvalidName or ModelNotFound."""
        ...


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
        self._compiled: set[tuple[str, str | None]] = set()

    # -- generation --

    @asynccontextmanager
    async def generate(self, request: GenerateRequest) -> AsyncGenerator[EventStream]:
        """Open a stream of events; see InferenceService.

        A task of its own holds the runner: a continued answer gives one runner back and takes
        another, which must not cross the cancel scopes the reader is in at that moment.
        """
        started_ns = now_ns()
        model = await self._models.resolve(request.model)
        answer = self._begin(request, model, started_ns)
        sender, receiver = trio.open_memory_channel[GenerateEvent | Ending | Exception](0)
        failure: BaseException | None = None
        self._metrics.requests_active.inc()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer.serve, sender)
                # Errors leave the nursery as values, since it would wrap them in a group.
                try:
                    await answer.opened.wait()
                    failure = answer.failure
                    if failure is None:
                        yield Events(receiver)
                except BaseException as error:
                    failure = error
                nursery.cancel_scope.cancel()
            if failure is not None:
                raise failure
        finally:
            del failure
            receiver.close()
            self._metrics.requests_active.dec()
            self._report(answer)

    def _begin(self, request: GenerateRequest, model: InstalledModel, started: int) -> Answer:
        """Everything that can be refused without loading the model."""
        _check_capabilities(request, model)
        options = _options(model, request.options)
        grammar = "" if request.format is None else self._grammar(request.format)
        seed = self._rng.getrandbits(64) if options.seed == -1 else options.seed & _SEED_MASK
        return Answer(
            request=request,
            model=model,
            options=options,
            grammar=grammar,
            seed=seed,
            started_ns=started,
            runners=self._runners,
            prepare=partial(self._prepare, request, model, options),
        )

    async def _prepare(
        self,
        request: GenerateRequest,
        model: InstalledModel,
        options: Options,
        lease: RunnerLease,
    ) -> PreparedPrompt:
        await self._compile_template(request, model)
        return await prepare_prompt(
            lease.runner,
            model,
            request,
            self._rendering(lease.runner.facts),
            context_length=lease.context_length,
            keep=kept_tokens(options, lease.runner.facts),
        )

    async def _compile_template(self, request: GenerateRequest, model: InstalledModel) -> None:
        """See that rendering finds its template compiled: a long one takes a tenth of a second,
        which is spent in a thread, once."""
        prompt = request.prompt
        requested = None if isinstance(prompt, ChatPrompt) else prompt.template
        if not isinstance(prompt, ChatPrompt) and (prompt.raw or prompt.suffix):
            return
        sources = (requested, model.header.chat_template, model.template)
        if max(len(source or "") for source in sources) <= INLINE_COMPILE_CHARACTERS:
            return
        key = (model.digest, requested)
        if key in self._compiled:
            return
        await trio.to_thread.run_sync(
            partial(choose_template, model, requested=requested, go_template=self._go_template)
        )
        if len(self._compiled) >= COMPILED_LIMIT:
            self._compiled.clear()
        self._compiled.add(key)

    def _rendering(self, facts: ModelFacts) -> RenderContext:
        return RenderContext(
            now=self._wall_clock(),
            bos_text=facts.bos_text,
            eos_text=facts.eos_text,
            go_template=self._go_template,
        )

    def _report(self, answer: Answer) -> None:
        """Metrics and the one log line of a request, whichever way it ended."""
        name = answer.model.name.short
        metrics = self._metrics
        prompt_tokens = 0 if answer.prompt is None else len(answer.prompt.tokens)
        completion_tokens = len(answer.ledger.tokens)
        metrics.requests_finished.labels(name, answer.outcome).inc()
        metrics.prompt_tokens.labels(name).inc(prompt_tokens)
        metrics.cached_tokens.labels(name).inc(answer.cached_tokens)
        metrics.completion_tokens.labels(name).inc(completion_tokens)
        first_token_ms = None
        if answer.first_token_ns is not None:
            waited_ns = answer.first_token_ns - answer.started_ns
            metrics.first_token_seconds.labels(name).observe(waited_ns / 1e9)
            first_token_ms = waited_ns // 1_000_000
        _log.info(
            "request_finished",
            request_id=answer.request.request_id,
            principal=answer.request.principal.name,
            model=name,
            outcome=answer.outcome,
            error=type(answer.failure).__name__ if answer.failure else None,
            prompt_tokens=prompt_tokens,
            cached_tokens=answer.cached_tokens,
            completion_tokens=completion_tokens,
            dropped_messages=answer.prompt.dropped_messages if answer.prompt else 0,
            cut_tokens=answer.prompt.cut_tokens if answer.prompt else 0,
            runners_lost=answer.runners_lost,
            load_ms=answer.load_ns // 1_000_000,
            first_token_ms=first_token_ms,
            total_ms=(now_ns() - answer.started_ns) // 1_000_000,
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
        started_ns = now_ns()
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
                total_ns=now_ns() - started_ns,
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
            self._report_embedding(request, model, outcome, result, now_ns() - started_ns)

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

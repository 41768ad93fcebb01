"""A sequence while it is being served: its schedule, its sampler, its text, its times."""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.inference.engine.sampling import SequenceSampler
from agent.inference.engine.sequence import ScheduledSequence
from agent.inference.protocol import FinishReason, Generate, LogprobRow, Summary
from agent.inference.text import TextAssembler


@dataclass(slots=True, eq=False)
class LiveSequence:
    """``history`` is the whole prompt and answer, whatever context shifts cut from the window."""

    start: Generate
    scheduled: ScheduledSequence
    sampler: SequenceSampler
    text: TextAssembler
    history: list[int]
    answered: int
    """Answer tokens so far, those of an earlier runner included."""
    submitted_ns: int
    admitted_ns: int = 0
    first_token_ns: int = 0
    drawn: int = 0
    """Tokens drawn by this runner, the end token included."""
    new_tokens: list[int] = field(default_factory=list[int])
    new_logprobs: list[LogprobRow] = field(default_factory=list[LogprobRow])
    new_text: str = ""
    finish: FinishReason | None = None
    reason: str = ""

    def summary(self, now_ns: int) -> Summary:
        """What this sequence cost, measured. Durations a phase never reached are zero."""
        admitted_ns = self.admitted_ns or now_ns
        first_ns = self.first_token_ns or now_ns
        return Summary(
            cached_tokens=self.scheduled.cached,
            prompt_tokens=len(self.start.prompt),
            completion_tokens=self.drawn,
            wait_ns=admitted_ns - self.submitted_ns,
            prompt_ns=max(0, first_ns - admitted_ns),
            eval_ns=now_ns - first_ns,
        )

"""The objects of generate and chat answers, encoded once. Pure.

A streamed line differs from its neighbours in the time and the text alone; everything around
them is encoded when the stream begins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Literal

import msgspec

from agent.inference.request import Candidate, DoneReason, Finished, TextDelta, TokenLogprob
from api.times import rfc3339_utc

FrameKind = Literal["generate", "chat"]

_BEFORE_TEXT: Final = {
    "generate": b'","response":',
    "chat": b'","message":{"role":"assistant","content":',
}
_AFTER_TEXT: Final = {"generate": b',"done":false', "chat": b'},"done":false'}
_encode: Final = msgspec.json.Encoder().encode


class FrameEncoder:
    """Encodes the objects of one answer. ``now_ns`` is the wall clock."""

    __slots__ = ("_after", "_before", "_head", "_kind", "_model", "_now_ns")

    def __init__(self, kind: FrameKind, model: str, now_ns: Callable[[], int]) -> None:
        self._kind: FrameKind = kind
        self._model = model
        self._now_ns = now_ns
        self._head = b'{"model":' + _encode(model) + b',"created_at":"'
        self._before = _BEFORE_TEXT[kind]
        self._after = _AFTER_TEXT[kind]

    def delta(self, event: TextDelta) -> bytes:
        """The line of new text."""
        if event.logprobs:
            tail = b',"logprobs":' + _encode(logprob_objects(event.logprobs)) + b"}\n"
        else:
            tail = b"}\n"
        return b"".join(
            (
                self._head,
                rfc3339_utc(self._now_ns()).encode(),
                self._before,
                _encode(event.text),
                self._after,
                tail,
            )
        )

    def final(
        self,
        finished: Finished,
        *,
        text: str = "",
        logprobs: Sequence[TokenLogprob] = (),
        extra: dict[str, object] | None = None,
    ) -> bytes:
        """The closing object without a newline; with ``text``, the whole unstreamed answer."""
        fields = self._start(text)
        fields["done"] = True
        fields["done_reason"] = finished.reason
        if finished.context and self._kind == "generate":
            fields["context"] = finished.context
        for name, value in (
            ("total_duration", finished.total_ns),
            ("load_duration", finished.load_ns),
            ("prompt_eval_count", finished.prompt_tokens),
            ("prompt_eval_duration", finished.prompt_ns),
            ("eval_count", finished.completion_tokens),
            ("eval_duration", finished.eval_ns),
        ):
            if value:
                fields[name] = value
        if logprobs:
            fields["logprobs"] = logprob_objects(logprobs)
        if extra:
            fields |= extra
        return _encode(fields)

    def loaded(self, reason: DoneReason) -> bytes:
        """The whole answer to a request that only loads or unloads."""
        return _encode(self._start("") | {"done": True, "done_reason": reason})

    def rendered(self, prompt: str, *, images: int = 0) -> bytes:
        """The answer to ``_debug_render_only``."""
        return _encode(
            self._start("")
            | {
                "done": False,
                "_debug_info": {"rendered_template": prompt, "image_count": images},
            }
        )

    def _start(self, text: str) -> dict[str, object]:
        fields: dict[str, object] = {
            "model": self._model,
            "created_at": rfc3339_utc(self._now_ns()),
        }
        if self._kind == "generate":
            fields["response"] = text
        else:
            fields["message"] = {"role": "assistant", "content": text}
        return fields


def logprob_objects(logprobs: Sequence[TokenLogprob]) -> list[dict[str, object]]:
    """``logprobs`` as Ollama shows them; ``top_logprobs`` where alternatives were asked for."""
    shown: list[dict[str, object]] = []
    for entry in logprobs:
        fields = _candidate(entry.chosen)
        if entry.top:
            fields["top_logprobs"] = [_candidate(candidate) for candidate in entry.top]
        shown.append(fields)
    return shown


def _candidate(candidate: Candidate) -> dict[str, object]:
    return {
        "token": candidate.text.decode("utf-8", "replace"),
        "logprob": candidate.logprob,
        "bytes": list(candidate.text),
    }

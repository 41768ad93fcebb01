"""Blocking file work in a thread, with its types kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import trio

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


async def in_thread(
    function: Callable[_Parameters, _Result], *args: _Parameters.args, **kwargs: _Parameters.kwargs
) -> _Result:
    """Run ``function`` in a worker thread. Cancellation waits for it to end, so nothing that a
    caller cleans up is still in use."""

    def call() -> object:
        return function(*args, **kwargs)

    return cast("_Result", await trio.to_thread.run_sync(call))

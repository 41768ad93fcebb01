"""SIGTERM and SIGINT: the first one drains, the second one ends the process at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType

import structlog
import trio

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_log = structlog.get_logger()


async def stop_on_signal(
    begin_stop: Callable[[], None],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Call ``begin_stop`` at the first signal, then leave the second one to ``_exit_at_once``.

    Runner processes die with the agent, so nothing is left behind by an exit at once.
    """
    with trio.open_signal_receiver(*STOP_SIGNALS) as received:
        task_status.started()
        number = await anext(received)
    for each in STOP_SIGNALS:
        signal.signal(each, _exit_at_once)
    _log.info("stop_requested", signal=signal.Signals(number).name)
    begin_stop()


def _exit_at_once(number: int, _frame: FrameType | None) -> None:
    # A plain handler, because it must work even when the event loop does not.
    os._exit(128 + number)

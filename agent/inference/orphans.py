"""Records of running runners, and the sweep that ends those of an agent that is gone."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import structlog
import trio

from agent.inference.processes import ProcessHandle, start_mark

log = structlog.get_logger()

RECORD_VERSION: Final = 1
TERMINATE_S: Final = 2.0
KILL_S: Final = 5.0


class RunnerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One runner process, written next to its agent's data. ``started`` is a start mark."""

    version: int = RECORD_VERSION
    runner_id: str
    pid: int
    started: str
    agent_pid: int


@dataclass(frozen=True, slots=True)
class Orphan:
    """A runner that outlived its agent and was ended."""

    runner_id: str
    pid: int


def write_record(directory: Path, record: RunnerRecord) -> Path:
    """Write the record so that a reader sees all of it or none. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{record.runner_id}.json"
    partial = path.with_suffix(".partial")
    partial.write_bytes(msgspec.json.encode(record))
    partial.replace(path)
    return path


async def end_orphans(directory: Path) -> tuple[Orphan, ...]:
    """End every recorded process that is still the one recorded, and remove all records.

    A process counts as recorded only when pid and start time both agree, so another program
    that was given the pid since is never touched. To be called before the first runner is
    started, by the one agent that owns ``directory``.
    """
    ended: list[Orphan] = []
    for record in _read_records(directory):
        if await _end(record):
            ended.append(Orphan(record.runner_id, record.pid))
            log.warning("orphan_runner_ended", runner_id=record.runner_id, pid=record.pid)
    _remove_records(directory)
    return tuple(ended)


def _read_records(directory: Path) -> list[RunnerRecord]:
    if not directory.is_dir():
        return []
    records = (_read_record(path) for path in sorted(directory.glob("*.json")))
    return [record for record in records if record is not None]


def _remove_records(directory: Path) -> None:
    for pattern in ("*.json", "*.partial"):
        for path in directory.glob(pattern):
            path.unlink(missing_ok=True)


def _read_record(path: Path) -> RunnerRecord | None:
    try:
        record = msgspec.json.decode(path.read_bytes(), type=RunnerRecord)
    except (OSError, msgspec.MsgspecError) as error:
        log.warning("runner_record_unreadable", path=str(path), error=str(error))
        return None
    if record.version != RECORD_VERSION or record.pid <= 1:
        log.warning("runner_record_unknown", path=str(path), version=record.version)
        return None
    return record


async def _end(record: RunnerRecord) -> bool:
    try:
        handle = ProcessHandle(record.pid)
    except ProcessLookupError:
        return False
    try:
        # The handle pins the process; only now does comparing the start time prove anything.
        if start_mark(record.pid) != record.started:
            return False
        for number, patience_s in ((signal.SIGTERM, TERMINATE_S), (signal.SIGKILL, KILL_S)):
            handle.send_signal(number)
            with trio.move_on_after(patience_s) as waiting:
                await handle.wait()
            if not waiting.cancelled_caught:
                return True
        log.error("orphan_runner_survives", runner_id=record.runner_id, pid=record.pid)
        return False
    finally:
        handle.close()

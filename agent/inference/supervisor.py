"""Runner processes: started, watched, stopped and recorded."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

import structlog
import trio

from agent.inference.channel import RunnerChannel
from agent.inference.errors import LoadFailed, RunnerDied
from agent.inference.lease import Runner
from agent.inference.orphans import RunnerRecord, write_record
from agent.inference.processes import ProcessHandle, start_mark
from agent.inference.protocol import LoadModel, LoadProgress, ModelFacts, Statistics
from agent.inference.runner_log import bound_log, log_tail, open_log
from agent.settings import Settings

log = structlog.get_logger()

SHUTDOWN_S: Final = 5.0
TERMINATE_S: Final = 3.0
KILL_S: Final = 10.0
DRAIN_S: Final = 1.0
LOG_CHECK_S: Final = 60.0
RUNNER_COMMAND: Final = (sys.executable, "-m", "agent.inference.runner")


class LoadCrashed(LoadFailed):
    """The process ended while it loaded, as opposed to refusing the model in words."""


class RunnerProcess(Protocol):
    """One started runner, whatever it runs in."""

    @property
    def pid(self) -> int: ...

    @property
    def runner(self) -> Runner:
        """Usable after ``load``."""
        ...

    @property
    def statistics(self) -> Statistics | None:
        """The latest figures the runner sent."""
        ...

    @property
    def alive(self) -> bool:
        """Neither the process nor its channel is known to have ended."""
        ...

    async def serve(self) -> None:
        """Move frames and watch the process until it ends."""
        ...

    async def load(
        self,
        frame: LoadModel,
        *,
        model: str,
        stall_timeout_s: float,
        on_progress: Callable[[LoadProgress], None],
    ) -> ModelFacts:
        """Raises LoadFailed, LoadCrashed or LoadStalled."""
        ...

    def set_threads(self, threads: int) -> None: ...

    async def wait_ended(self) -> str:
        """Wait until the process or its channel is gone; returns why as far as known then."""
        ...

    async def stop(self) -> str:
        """End it: asked, then terminated, then killed. Bounded, and to be called shielded.
        Returns how it ended."""
        ...


class RunnerHost(Protocol):
    """Starts runner processes."""

    def start(self, runner_id: str) -> RunnerProcess:
        """Raises OSError when no process can be started."""
        ...


class ProcessHost:
    """Starts real processes. ``command`` and ``environment`` are replaced in tests."""

    def __init__(
        self,
        settings: Settings,
        *,
        command: Sequence[str] = RUNNER_COMMAND,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._settings = settings
        self._command = tuple(command)
        self._environment = dict(os.environ if environment is None else environment)

    def start(self, runner_id: str) -> ChildProcess:
        """Spawn a runner. Raises OSError.

        Runs on the calling thread, which must be the main one: the kernel sends the child's
        parent-death signal when the *thread* that spawned it ends, so a worker thread would
        kill its runners by returning to its pool.
        """
        if threading.current_thread() is not threading.main_thread():
            raise AssertionError("runners are spawned from the main thread")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        log_path = self._settings.home / "logs" / f"runner-{runner_id}.log"
        try:
            with theirs, open_log(log_path) as log_file:
                log_start = os.fstat(log_file.fileno()).st_size
                popen = subprocess.Popen(
                    [*self._command, "--fd", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=log_file,
                    stderr=log_file,
                    pass_fds=(theirs.fileno(),),
                    env=runner_environment(self._settings, self._environment),
                    start_new_session=True,
                )
        except BaseException:
            ours.close()
            raise
        try:
            return ChildProcess(
                runner_id, popen, ours, log_path, log_start, self._settings.home / "runners"
            )
        except BaseException:
            popen.kill()
            popen.wait()
            ours.close()
            raise


def runner_environment(settings: Settings, base: Mapping[str, str]) -> dict[str, str]:
    """What a runner's environment must hold before exec; OpenMP reads it when it is loaded.

    libgomp's default spin count lets two CPU runners on one machine slow each other down a
    hundredfold; a short one costs nothing when alone.
    """
    environment = dict(base)
    package_parent = str(Path(__file__).resolve().parents[2])
    paths = [package_parent, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    environment["PYTHONUNBUFFERED"] = "1"
    environment["GOMP_SPINCOUNT"] = "1000"
    environment["OMP_NUM_THREADS"] = str(max(1, settings.cpu_threads))
    environment["GGML_NO_BACKTRACE"] = "1"
    if settings.cpu_wait == "passive":
        environment["OMP_WAIT_POLICY"] = "passive"
    else:
        environment.pop("OMP_WAIT_POLICY", None)
    return environment


class ChildProcess:
    """A runner in a child process of this agent; implements ``RunnerProcess``."""

    def __init__(
        self,
        runner_id: str,
        popen: subprocess.Popen[bytes],
        connection: socket.socket,
        log_path: Path,
        log_start: int,
        records: Path,
    ) -> None:
        self._runner_id = runner_id
        self._popen = popen
        self._log_path = log_path
        self._log_start = log_start
        self._handle = ProcessHandle(popen.pid)
        self._exited = trio.Event()
        self._loaded = False
        connection.setblocking(False)
        self._channel = RunnerChannel(trio.socket.from_stdlib_socket(connection), runner_id)
        self._record = write_record(
            records,
            RunnerRecord(
                runner_id=runner_id,
                pid=popen.pid,
                started=start_mark(popen.pid) or "",
                agent_pid=os.getpid(),
            ),
        )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._popen.pid

    @property
    def runner(self) -> RunnerChannel:
        """The channel, usable after ``load``."""
        return self._channel

    @property
    def statistics(self) -> Statistics | None:
        """The latest figures the runner sent."""
        return self._channel.statistics

    @property
    def alive(self) -> bool:
        """Neither the process nor its channel is known to have ended."""
        return not self._exited.is_set() and not self._channel.ended

    async def serve(self) -> None:
        """Move frames and watch the process; returns when it has ended. When cancelled, the
        process is left to ``stop``, its channel is closed."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._bound_log)
            nursery.start_soon(self._channel.serve)
            await self._wait_exit()
            # What the process wrote before its end is still in the socket; its end follows.
            with trio.move_on_after(DRAIN_S):
                await self._channel.wait_ended()
            nursery.cancel_scope.cancel()

    async def load(
        self,
        frame: LoadModel,
        *,
        model: str,
        stall_timeout_s: float,
        on_progress: Callable[[LoadProgress], None],
    ) -> ModelFacts:
        """Send the load and wait. Raises LoadFailed, LoadCrashed or LoadStalled; each quotes
        the end of the runner's log."""
        try:
            facts = await self._channel.load(
                frame, model=model, stall_timeout_s=stall_timeout_s, on_progress=on_progress
            )
        except LoadFailed as error:
            error.reason = self._with_log(error.reason)
            raise
        except RunnerDied as error:
            with trio.move_on_after(1.0):
                await self._exited.wait()
            ended = self.exit_text or str(error)
            raise LoadCrashed(model, self._channel.load_phase, self._with_log(ended)) from error
        self._loaded = True
        return facts

    def set_threads(self, threads: int) -> None:
        """CPU threads from the next step on."""
        self._channel.set_threads(threads)

    async def wait_ended(self) -> str:
        """Wait until the channel is gone; returns why. The exit status often comes later."""
        reason = await self._channel.wait_ended()
        return self.exit_text or reason

    @property
    def exit_text(self) -> str:
        """How the process ended, or nothing while it has not."""
        code = self._popen.returncode
        if code is None:
            return ""
        if code < 0:
            try:
                return f"the runner process was ended by {signal.Signals(-code).name}"
            except ValueError:
                return f"the runner process was ended by signal {-code}"
        return f"the runner process exited with status {code}"

    async def stop(self) -> str:
        """End the process by deadlines and forget its record; returns how it ended."""
        try:
            # One that still loads does not listen, and has nothing to put away.
            if self._loaded and not self._channel.ended:
                self._channel.shut_down()
                await self._exits_within(SHUTDOWN_S)
            for number, patience_s in ((signal.SIGTERM, TERMINATE_S), (signal.SIGKILL, KILL_S)):
                if not await self._exits_within(0):
                    self._handle.send_signal(number)
                    await self._exits_within(patience_s)
            if self._popen.returncode is None:
                log.error("runner_survives_kill", runner_id=self._runner_id, pid=self.pid)
        finally:
            self._channel.close("the runner was stopped")
            if self._popen.returncode is not None:
                self._handle.close()
                self._record.unlink(missing_ok=True)
        return self.exit_text

    async def _exits_within(self, patience_s: float) -> bool:
        with trio.move_on_after(patience_s):
            await self._wait_exit()
        return self._popen.poll() is not None

    async def _wait_exit(self) -> None:
        if self._popen.poll() is None:
            await self._handle.wait()
            self._popen.poll()
        self._exited.set()

    async def _bound_log(self) -> None:
        while True:
            await trio.sleep(LOG_CHECK_S)
            await trio.to_thread.run_sync(bound_log, self._log_path)

    def _with_log(self, reason: str) -> str:
        tail = [line for line in log_tail(self._log_path, self._log_start) if line not in reason]
        return f"{reason} (log: {' | '.join(tail)})" if tail else reason

"""What a runner does to itself first: die with its agent, leave no core file."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from typing import Final

PR_SET_PDEATHSIG: Final = 1


def isolate(parent_pid: int) -> None:
    """Tie this process's life to its parent's. Exits at once if the parent is already gone."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # The signal is only sent for a death that happens after the call above.
    if os.getppid() != parent_pid:
        os._exit(1)

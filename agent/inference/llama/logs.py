"""llama.cpp's log lines: to the runner's log file, the last errors kept for load failures."""

from __future__ import annotations

import ctypes
import sys
from collections import deque
from typing import Final

from agent.inference.llama import library

KEPT_LINES: Final = 8
_ERROR_LEVEL: Final = 4
_WARNING_LEVEL: Final = 3

_recent: deque[str] = deque(maxlen=KEPT_LINES)
_callback_type = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


def _receive(level: int, text: bytes, _user: int | None) -> None:
    if level < _WARNING_LEVEL:
        return
    line = text.decode("utf-8", "replace")
    if level == _ERROR_LEVEL and line.strip():
        _recent.append(line.strip())
    sys.stderr.write(line)


_callback = _callback_type(_receive)


def capture() -> None:
    """Send llama.cpp's warnings and errors to standard error from now on."""
    library.log_set(ctypes.cast(_callback, ctypes.c_void_p), None)


def last_error() -> str:
    """The most telling recent error line, or an empty string."""
    return _recent[0] if _recent else ""

"""The log file of one runner: bounded over restarts and while it runs, its end quotable."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO, Final

LOG_LIMIT_BYTES: Final = 4 << 20
"""Above this the file becomes ``.1`` before a restart, and is cut while the runner runs."""
TAIL_BYTES: Final = 4096
TAIL_LINES: Final = 6


def open_log(path: Path) -> BinaryIO:
    """Open for appending, moving a long one aside first. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > LOG_LIMIT_BYTES:
        path.replace(path.with_name(f"{path.name}.1"))
    return path.open("ab", buffering=0)


def bound_log(path: Path) -> None:
    """Keep the end of a log that grew too long under its writer, who appends."""
    try:
        with path.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            if size <= LOG_LIMIT_BYTES:
                return
            file.seek(size - LOG_LIMIT_BYTES // 4)
            end = file.read(LOG_LIMIT_BYTES // 4)
            path.with_name(f"{path.name}.1").write_bytes(end)
            file.truncate(0)
    except FileNotFoundError:
        return


def log_tail(path: Path, since_bytes: int = 0) -> tuple[str, ...]:
    """The last lines written after ``since_bytes``, without empty ones."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = since_bytes if since_bytes <= size else 0
            file.seek(max(start, size - TAIL_BYTES))
            text = file.read(TAIL_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return ()
    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    return lines[-TAIL_LINES:]

"""Which processes this one starts, by whatever thread and however short they live."""

from __future__ import annotations

import _posixsubprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

STARTS = frozenset(
    {
        "subprocess.Popen",
        "os.posix_spawn",
        "os.fork",
        "os.forkpty",
        "os.exec",
        "os.spawn",
        "os.system",
        "pty.spawn",
    }
)
"""Audit events of the interpreter (PEP 578), told before the process is there."""
_watching: list[list[str]] = []
_hooked: list[bool] = []


def _told(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event in STARTS:
        for seen in _watching:
            seen.append(f"{event} {arguments[:2]!r}")


@contextmanager
def started() -> Generator[list[str]]:
    """What was started since the block began; a start that fails counts too."""
    if not _hooked:
        # A hook cannot be removed: there is one, and it looks away where nobody watches.
        sys.addaudithook(_told)
        _hooked.append(True)
    seen: list[str] = []
    fork_exec = _posixsubprocess.fork_exec

    def told(*arguments: Any) -> int:
        seen.append(f"_posixsubprocess.fork_exec {arguments[:2]!r}")
        return fork_exec(*arguments)

    # What multiprocessing starts by (all but "fork") has no event of its own.
    _posixsubprocess.fork_exec = told
    _watching.append(seen)
    try:
        yield seen
    finally:
        _watching.remove(seen)
        _posixsubprocess.fork_exec = fork_exec

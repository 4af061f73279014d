"""What a refusal may cost: processor time of this process, and time in which it waits for anything but a processor."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

SCHEDSTAT = Path("/proc/thread-self/schedstat")
WALL_S = 60.0
"""For a machine that has better things to do; whatever hangs takes longer."""


def _running_s() -> float | None:
    """Seconds in which this thread has run or was ready to (proc(5)); None where the kernel does not count them."""
    try:
        ran, ready, _ = SCHEDSTAT.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return (int(ran) + int(ready)) / 1e9


@contextmanager
def within(cpu_s: float = 1.0, *, waiting_s: float = 3.0, wall_s: float = WALL_S) -> Generator[None]:
    """The block costs no more than that; a sleep, a lock or a child counts as waiting, a busy machine does not."""
    cpu, wall, running = time.process_time(), time.monotonic(), _running_s()
    yield
    spent_s, elapsed_s, now = time.process_time() - cpu, time.monotonic() - wall, _running_s()
    assert spent_s < cpu_s
    assert elapsed_s < wall_s
    if running is not None and now is not None:
        assert elapsed_s - (now - running) < waiting_s

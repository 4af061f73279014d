"""How much memory this process and all that it has started come to hold, at the peak."""

from __future__ import annotations

import os
import re
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

RESET_PEAK = "5"
"""proc(5), /proc/PID/clear_refs: the peak is what is held now."""


_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)


class Growth:
    """What the processes have come to hold beyond what they held at the beginning; complete once the block is left."""

    def __init__(self) -> None:
        self.kib = 0
        """Sum of what each has grown by, at its own peak; of processes that began meanwhile all that they hold."""
        self.processes = 0
        """This one among them."""


def _peaks_kib() -> dict[int, int]:
    """Of this process and its descendants, by process id."""
    me = psutil.Process(os.getpid())
    peaks: dict[int, int] = {}
    for process in [me, *me.children(recursive=True)]:
        with suppress(FileNotFoundError, ProcessLookupError):
            found = _PEAK.search(Path(f"/proc/{process.pid}/status").read_text())
            # A process that has ended and was not waited for has no memory.
            if found is not None:
                peaks[process.pid] = int(found[1])
    return peaks


@contextmanager
def growth() -> Generator[Growth]:
    """Measures while the block runs. A peak of before, of another test's, does not count."""
    for pid in _peaks_kib():
        with suppress(FileNotFoundError, ProcessLookupError):
            Path(f"/proc/{pid}/clear_refs").write_text(RESET_PEAK)
    before = _peaks_kib()
    found = Growth()
    yield found
    after = _peaks_kib()
    found.kib = sum(peak - before.get(pid, 0) for pid, peak in after.items())
    found.processes = len(after)

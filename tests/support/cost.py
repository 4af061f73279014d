"""What a piece of work costs this process: processor time, and how far its memory grew meanwhile."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass
class OwnCost:
    """Filled in when the work is done."""

    cpu_s: float = 0.0
    growth_mib: float = 0.0


def _mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


@contextmanager
def measured_cost() -> Generator[OwnCost]:
    """The cost of the block, of all threads."""
    cost = OwnCost()
    # The highest resident size counts from here on (proc(5), clear_refs).
    Path("/proc/self/clear_refs").write_text("5")
    before, began = _mib("VmRSS"), time.process_time()
    yield cost
    cost.cpu_s = time.process_time() - began
    cost.growth_mib = _mib("VmHWM") - before

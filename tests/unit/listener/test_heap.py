"""What a process of the listener holds for good; in a process of its own, because it cannot be taken back."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc
from heimdallr_ray.listener.heap import keep_for_good


class Ring:
    gone = 0

    def __init__(self):
        self.itself = self

    def __del__(self):
        Ring.gone += 1


Ring()
keep_for_good()
assert Ring.gone == 1, "what was garbage before is kept for good"
frozen = gc.get_freeze_count()
assert frozen > 1000, frozen
assert len(gc.get_objects()) < frozen / 10, "a collection still walks through what was there"
Ring()
gc.collect()
assert Ring.gone == 2, "what becomes garbage later is not collected"
assert gc.isenabled()
"""


def test_only_what_came_later_is_looked_through() -> None:
    """Garbage of before and after goes; the rest of before is left out of every collection."""
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=60)

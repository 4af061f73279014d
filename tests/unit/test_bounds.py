"""The bounds that other tests rely on do fail."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from tests.support import bounds
from tests.support.bounds import within


def test_what_costs_little_passes() -> None:
    with within():
        sum(range(1000))


def test_a_wait_is_seen_although_it_takes_no_processor() -> None:
    assert bounds._running_s() is not None, "this kernel does not count what a thread waits for"
    with pytest.raises(AssertionError), within(waiting_s=0.2):
        time.sleep(0.4)
    with pytest.raises(AssertionError), within(waiting_s=0.2):
        subprocess.run([sys.executable, "-c", "import time; time.sleep(0.4)"], check=True, timeout=60)


def test_processor_time_and_elapsed_time_are_bounded_too() -> None:
    with pytest.raises(AssertionError), within(0.05):
        sum(range(2 * 10**7))
    with pytest.raises(AssertionError), within(wall_s=0.01):
        time.sleep(0.05)

"""Ending processes: by pid, each of them, and no longer waited for than they are there."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil

from heimdallr_ray.operations import processes

HANG_S = 60.0
NEGLECTFUL = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
sys.stdin.read()
"""
"""Starts a child and never asks how it ended."""


def test_one_whose_parent_does_not_ask_is_not_waited_for() -> None:
    with subprocess.Popen([sys.executable, "-c", NEGLECTFUL], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        orphan = psutil.Process(int(parent.stdout.readline()))
        began = time.monotonic()
        assert processes.end([orphan], term_s=0, kill_s=2 * HANG_S) == []
        assert time.monotonic() - began < HANG_S
        assert orphan.status() == psutil.STATUS_ZOMBIE
        parent.kill()


def test_one_that_does_not_listen_is_killed() -> None:
    deaf = "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", deaf], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline()
        process = psutil.Process(child.pid)
        assert processes.end([process], term_s=0.2, kill_s=HANG_S) == []
        assert child.wait(HANG_S) == -9


def test_who_is_gone_already_is_nobody() -> None:
    with subprocess.Popen([sys.executable, "-c", "pass"]) as child:
        process = psutil.Process(child.pid)
        child.wait(HANG_S)
    assert processes.end([process], term_s=1.0, kill_s=1.0) == []

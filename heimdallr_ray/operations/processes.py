"""Processes that we started: found, remembered and ended by pid, never by name alone."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

_PR_SET_PDEATHSIG = 1
RAY_NAMES = ("ray", "gcs_server", "python")


def die_with_parent() -> None:
    """Runs in a new child before exec: the kernel sends it SIGTERM when the thread that started it ends (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def descendants(pid: int) -> list[psutil.Process]:
    """All living processes below `pid`, `pid` itself not included."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def belonging_to(marker: str) -> list[psutil.Process]:
    """Living processes of Ray that carry `marker`, a folder name that is ours alone, in command line or environment.

    Ray's daemons and workers leave their parent's process tree, so the tree alone does not name them all. Other
    programs that look into the folder, a pager or `tail`, are not ours to end.
    """
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        with contextlib.suppress(psutil.Error, OSError):
            if not process.name().startswith(RAY_NAMES):
                continue
            if any(marker in word for word in process.cmdline()) or marker in process.environ().get("RAY_TMPDIR", ""):
                found.append(process)
    return found


def remember(path: Path, processes: Iterable[psutil.Process]) -> None:
    """Write pid and start time of each process to `path`, atomically."""
    entries: list[dict[str, float]] = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            entries.append({"pid": process.pid, "created": process.create_time()})
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(entries), encoding="utf-8")
    temporary.replace(path)


def remembered(path: Path) -> list[psutil.Process]:
    """The processes of `path` that are still the same processes."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    alive: list[psutil.Process] = []
    for entry in entries:
        with contextlib.suppress(psutil.Error, KeyError, TypeError):
            process = psutil.Process(int(entry["pid"]))
            if abs(process.create_time() - float(entry["created"])) < 1.0:
                alive.append(process)
    return alive


def end(processes: Iterable[psutil.Process], *, term_s: float, kill_s: float) -> list[psutil.Process]:
    """SIGTERM to all, SIGKILL to those left after `term_s`; returns who is still there after another `kill_s`.

    Without a `term_s` there is no SIGTERM: all are killed at one stroke, in the order given.
    """
    waiting = list(processes)
    if term_s > 0:
        for process in waiting:
            with contextlib.suppress(psutil.Error):
                process.terminate()
        waiting = _left(waiting, term_s)
    for process in waiting:
        with contextlib.suppress(psutil.Error):
            process.kill()
    return _left(waiting, kill_s)


def _left(processes: list[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Who is still there after `timeout_s`, or earlier where nobody is.

    One that has ended and that nobody has asked about stays in the table (psutil's own wait would wait for it): in a
    container whose first process does not ask, that is every process whose parent was ended before it.
    """
    left = processes

    def none() -> bool:
        nonlocal left
        left = [process for process in left if _runs(process)]
        return not left

    wait_until(none, timeout_s=timeout_s, every_s=0.05)
    return left


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def stack_pss_mib(processes: Iterable[psutil.Process]) -> float:
    """Proportional set size of the processes in MiB: shared pages are counted once over all who share them."""
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error, OSError):
            total += process.memory_full_info().pss
    return total / 2**20


def wait_until(condition: Callable[[], bool], *, timeout_s: float, every_s: float = 0.1) -> bool:
    """True as soon as `condition()` is true, False where it is not within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(every_s)
    return condition()

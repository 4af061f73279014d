"""The watch for started processes of the hostile tests sees every way, from every thread."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import threading
from collections.abc import Callable

import pytest

from tests.support.starts import started


def by_fork() -> None:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)


def by_forkpty() -> None:
    child, terminal = os.forkpty()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    os.close(terminal)


def by_multiprocessing() -> None:
    process = multiprocessing.get_context("spawn").Process(target=os.getpid)
    process.start()
    process.join()
    process.close()


def by_failing() -> None:
    with pytest.raises(FileNotFoundError):
        subprocess.run(["/nowhere/evil"], check=False)


WAYS: dict[str, Callable[[], object]] = {
    "subprocess": lambda: subprocess.run(["true"], check=True),
    "posix_spawn": lambda: os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0),
    "system": lambda: os.system("true"),  # noqa: S605  # pyright: ignore[reportDeprecated]
    "spawn": lambda: os.spawnv(os.P_WAIT, "/bin/true", ["true"]),  # noqa: S606  # pyright: ignore[reportDeprecated]
    "fork": by_fork,
    "forkpty": by_forkpty,
    "multiprocessing": by_multiprocessing,
    "failing": by_failing,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_process_of_another_thread_is_seen_although_it_has_ended(way: str) -> None:
    with started() as seen:
        thread = threading.Thread(target=WAYS[way])
        thread.start()
        thread.join(60)
    assert not thread.is_alive()
    assert seen != []


def test_nothing_is_seen_where_nothing_starts_or_nobody_watches() -> None:
    with started() as seen:
        assert os.getpid() > 0
    subprocess.run(["true"], check=True)
    by_multiprocessing()
    assert seen == []
    with started() as inner, started() as outer:
        subprocess.run(["true"], check=True)
    assert (len(inner), len(outer)) == (1, 1)

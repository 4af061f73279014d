"""Only a process of this host that is certainly gone is called dead."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from heimdallr_ray.queue.owners import is_dead_here, owner_name


def _named(pid: object) -> str:
    return owner_name().replace(f"/{os.getpid()}/", f"/{pid}/")


def test_this_process_is_alive_and_an_ended_one_is_dead() -> None:
    assert not is_dead_here(f"{owner_name()}/0")
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    assert child.wait(60) == 0
    assert is_dead_here(f"{_named(child.pid)}/0")


def test_a_killed_process_is_dead_before_its_parent_asks() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert not is_dead_here(_named(child.pid))
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert is_dead_here(_named(child.pid))
    child.communicate(timeout=60)


@pytest.mark.parametrize("owner", ["", "w", "elsewhere/1/x/0"])
def test_a_name_that_says_nothing_certain_is_not_dead(owner: str) -> None:
    assert not is_dead_here(owner)


@pytest.mark.parametrize("process", ["", "1x", "-1", "0", "99999999999999999999", "²"])
def test_a_name_without_the_number_of_a_process_is_not_dead(process: str) -> None:
    owner = _named(process)
    assert not is_dead_here(owner)


def test_a_long_host_name_leaves_room_for_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "n" * 63)
    assert len(f"{owner_name()}/15") <= 64
    assert f"/{os.getpid()}/" in owner_name()

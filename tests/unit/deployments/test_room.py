"""Several inside, or one alone; whoever must be alone is neither joined nor kept waiting for ever."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from heimdallr_ray.deployments.room import Room
from heimdallr_ray.errors import EngineUnavailable

WAIT_S = 10.0


class Visitor:
    """A thread that is inside from `inside` until `go`."""

    def __init__(self, room: Room, pool: ThreadPoolExecutor, *, alone: bool = False) -> None:
        self.inside, self.go = threading.Event(), threading.Event()
        self._stay = pool.submit(self._visit, room, alone)

    def _visit(self, room: Room, alone: bool) -> None:
        with room.place(alone=alone, timeout_s=WAIT_S):
            self.inside.set()
            assert self.go.wait(WAIT_S)

    def end(self) -> None:
        self.go.set()
        self._stay.result(WAIT_S)


@pytest.fixture
def pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(8)


def test_no_more_than_the_places(pool: ThreadPoolExecutor) -> None:
    room = Room(2)
    first, second = Visitor(room, pool), Visitor(room, pool)
    assert first.inside.wait(WAIT_S) and second.inside.wait(WAIT_S)
    third = Visitor(room, pool)
    assert not third.inside.wait(0.1)
    first.end()
    assert third.inside.wait(WAIT_S)
    second.end()
    third.end()


def test_who_must_be_alone_waits_for_the_others_and_is_not_overtaken(pool: ThreadPoolExecutor) -> None:
    room = Room(2)
    first = Visitor(room, pool)
    assert first.inside.wait(WAIT_S)
    alone = Visitor(room, pool, alone=True)
    assert not alone.inside.wait(0.1)
    late, later = Visitor(room, pool), Visitor(room, pool, alone=True)
    assert not late.inside.wait(0.1)
    first.end()
    assert alone.inside.wait(WAIT_S)
    assert not late.inside.wait(0.1) and not later.inside.is_set()
    alone.end()
    late.go.set()
    later.go.set()
    late.end()
    later.end()


def test_one_that_cannot_be_alone_in_time_leaves_the_door_open(pool: ThreadPoolExecutor) -> None:
    room = Room(2)
    first = Visitor(room, pool)
    assert first.inside.wait(WAIT_S)
    began = time.monotonic()
    with pytest.raises(EngineUnavailable), room.place(alone=True, timeout_s=0.05):
        pytest.fail("it was not alone")
    assert time.monotonic() - began < WAIT_S
    second = Visitor(room, pool)
    assert second.inside.wait(WAIT_S)
    first.end()
    second.end()


def test_an_error_inside_frees_the_place() -> None:
    room = Room(1)
    for alone in (False, True, False):
        with pytest.raises(ValueError, match="inside"), room.place(alone=alone, timeout_s=WAIT_S):
            raise ValueError("inside")

"""A study has one deadline; who is late because of others may come again, who is late by himself may not."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from heimdallr_ray.errors import EngineUnavailable, MadeWay, OutOfTime
from heimdallr_ray.segmentation.deadline import ANSWER_S, CALL_S, STUDY_S, Deadline
from heimdallr_ray.segmentation.totalseg.upstream import LIMIT_S


class Clock:
    def __init__(self) -> None:
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s


class Lock:
    """Free after so many seconds of the clock."""

    def __init__(self, clock: Clock, after_s: float) -> None:
        self.clock, self.after_s, self.held = clock, after_s, False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        assert blocking and timeout >= 0
        self.clock.s += min(self.after_s, timeout)
        self.held = self.after_s <= timeout
        return self.held

    def release(self) -> None:
        assert self.held
        self.held = False


def test_everything_of_a_study_ends_before_its_caller_goes() -> None:
    assert STUDY_S + ANSWER_S <= CALL_S
    assert LIMIT_S < STUDY_S


def test_the_time_runs_for_all_tasks_together() -> None:
    clock = Clock()
    deadline = Deadline(10.0, clock)
    clock.s += 6.0
    deadline.require("a task")
    assert deadline.left_s == 4.0
    clock.s += 6.0
    assert deadline.left_s == 0.0
    with pytest.raises(OutOfTime, match="for a task"):
        deadline.require("a task")


@pytest.mark.parametrize("limit_s", [STUDY_S, 10.0])
def test_a_lock_that_is_not_free_in_time_is_not_waited_for_any_longer(limit_s: float) -> None:
    clock = Clock()
    deadline, lock = Deadline(limit_s, clock), Lock(clock, 3600.0)
    with pytest.raises(OutOfTime, match="another study held"), deadline.holding(lock, "a task"):
        pytest.fail("the block ran")
    assert clock.s == 1000.0 + limit_s and not lock.held


def test_a_lock_is_given_back_and_a_real_one_may_be_held_twice_by_its_thread() -> None:
    deadline, lock = Deadline(), threading.RLock()
    with deadline.holding(lock, "a task"), deadline.holding(lock, "its rough one"):
        pass
    other: list[bool] = []
    thread = threading.Thread(target=lambda: other.append(lock.acquire(timeout=5)))
    thread.start()
    thread.join(10)
    assert other == [True]


def late(deadline: Deadline, clock: Clock, wait_s: float) -> None:
    with deadline.blamed():
        with deadline.holding(Lock(clock, wait_s), "a task"):
            pass
        clock.s += STUDY_S
        deadline.require("a task")


@pytest.mark.parametrize(
    ("began_late_s", "waited_s", "raised"),
    [
        (0.0, 0.0, OutOfTime),
        (0.0, 100.0, OutOfTime),
        (100.0, 0.0, OutOfTime),
        (0.0, 500.0, EngineUnavailable),
        (500.0, 0.0, EngineUnavailable),
        (100.0, 100.0, EngineUnavailable),
        (CALL_S, 0.0, EngineUnavailable),
    ],
)
def test_whoever_was_held_up_may_be_tried_again(began_late_s: float, waited_s: float, raised: type[Exception]) -> None:
    clock = Clock()
    deadline = Deadline(STUDY_S - began_late_s, clock)
    with pytest.raises(raised) as caught:
        late(deadline, clock, waited_s)
    assert type(caught.value) is raised


@pytest.mark.parametrize(
    ("until", "left_s"), [(None, STUDY_S), (2000.0 + CALL_S, STUDY_S), (2000.0 + 300.0, 240.0), (1000.0, 0.0)]
)
def test_the_caller_says_until_when_it_waits(until: float | None, left_s: float) -> None:
    wall: Callable[[], float] = lambda: 2000.0  # noqa: E731
    assert Deadline.before(until, wall).left_s == pytest.approx(left_s, abs=1.0)


def test_work_that_nobody_waits_for_ends_as_soon_as_other_work_waits() -> None:
    clock, waits = Clock(), [False]
    deadline = Deadline(10.0, clock, gives_way=lambda: waits[0])
    assert deadline.optional and not Deadline().optional
    deadline.require("a tile")
    waits[0] = True
    with pytest.raises(MadeWay, match="other work came before a tile"):
        deadline.require("a tile")
    lock = Lock(clock, 1.0)
    with pytest.raises(MadeWay), deadline.holding(lock, "a task"):
        raise AssertionError
    assert not lock.held
    with pytest.raises(MadeWay), Deadline.before(None, gives_way=lambda: True).blamed():
        Deadline.before(None, gives_way=lambda: True).require("a tile")

"""Work that nobody waits for: one at a time, only while nothing else is to do, and counted whatever becomes of it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from heimdallr_ray.catalog.ahead import AHEAD_JOB, Outcome, Wish, count, counts, wish_for
from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.states import JobPriority, JobState
from heimdallr_ray.catalog.worklist import queue_depth
from heimdallr_ray.errors import DatabaseBusy, StaleLease
from heimdallr_ray.queue.idle import LOOK_S, MAX_CLAIMS, GivesWay, IdleQueue
from heimdallr_ray.queue.lease import Lease, LeaseQueue
from heimdallr_ray.queue.statements import MAX_LEVELS
from tests.support.clock import FakeClock


class Site:
    """A queue with wishes in it."""

    def __init__(self, database: Database) -> None:
        self.database, self.clock = database, FakeClock()
        self.queue = LeaseQueue(database, self.clock, 20.0, database_time=False)
        self.idle = IdleQueue(database, self.queue)

    def wish(self, series: str = "1.2.3", study: str = "s") -> bool:
        with self.database.write() as session:
            return wish_for(session, Wish(study, 2, series, 7), now=self.clock.now())

    def claim(self) -> Lease:
        lease = self.idle.claim("w")
        assert lease is not None
        return lease

    def counts(self) -> dict[str, int]:
        with self.database.read() as session:
            return {name: number for name, number in counts(session).items() if number}


@pytest.fixture
def site(database: Database) -> Site:
    return Site(database)


def test_a_wish_becomes_one_job_that_belongs_to_no_study(site: Site) -> None:
    assert site.wish() and not site.wish()
    assert site.wish(study="other")
    lease = site.claim()
    assert (lease.kind, lease.study_id, lease.epoch) == (AHEAD_JOB, None, 2)
    assert Wish.of(lease.payload, lease.epoch) == Wish("s", 2, "1.2.3", 7)
    with site.database.write() as session:
        site.queue.finish(session, lease)
    assert not site.wish()  # once for all


def test_it_is_behind_batch_work_however_long_it_waits() -> None:
    assert JobPriority.AHEAD - MAX_LEVELS > JobPriority.BATCH


def test_it_is_no_work_that_anybody_waits_for(site: Site) -> None:
    site.wish()
    with site.database.read() as session:
        assert queue_depth(session).queued == 0
        assert queue_depth(session, (AHEAD_JOB,)).queued == 1
    assert not site.idle.others()
    assert site.queue.claim("w", ["study"]) is None


def test_of_many_that_ask_at_once_one_gets_one(site: Site) -> None:
    for number in range(8):
        site.wish(f"1.2.{number}")
    together = threading.Barrier(8)

    def ask(number: int) -> Lease | None:
        together.wait(30)
        return site.idle.claim(f"w{number}")

    with ThreadPoolExecutor(8) as pool:
        found = [lease for lease in pool.map(ask, range(8)) if lease is not None]
    assert len(found) == 1


def test_it_costs_no_attempt_to_give_way_until_it_has_happened_too_often(site: Site) -> None:
    site.wish()
    for _ in range(MAX_CLAIMS - 1):
        lease = site.claim()
        assert lease.attempt == 1
        assert site.idle.give_way(lease) is JobState.QUEUED
    assert site.idle.give_way(site.claim()) is JobState.DEAD
    assert site.idle.claim("w") is None
    assert site.counts() == {"gave_way": MAX_CLAIMS}


def test_a_stale_holder_counts_nothing(site: Site) -> None:
    site.wish()
    lease = site.claim()
    site.idle.give_way(lease)
    for call in (
        lambda: site.idle.give_way(lease),
        lambda: site.idle.failed(lease, "c", "d", retry=True, delay_s=1.0),
    ):
        with pytest.raises(StaleLease):
            call()
    assert site.counts() == {"gave_way": 1}


def test_a_failure_is_tried_again_later_and_a_bounded_number_of_times(site: Site) -> None:
    site.wish()
    assert site.idle.failed(site.claim(), "c", "d", retry=True, delay_s=5.0) is JobState.QUEUED
    assert site.idle.claim("w") is None
    site.clock.advance(5)
    assert site.idle.failed(site.claim(), "c", "d", retry=True, delay_s=5.0) is JobState.DEAD
    assert site.counts() == {"failed": 2}


def test_counts_add_up_over_transactions(site: Site) -> None:
    for _ in range(3):
        with site.database.write() as session:
            count(session, Outcome.MADE)
            count(session, Outcome.USED, 2)
    with pytest.raises(RuntimeError), site.database.write() as session:
        count(session, Outcome.MADE)
        raise RuntimeError
    assert site.counts() == {"made": 3, "used": 6}


def test_the_database_is_asked_now_and_then_and_its_silence_is_an_answer() -> None:
    at, answers = [100.0], [False, False, True]
    asked: list[float] = []

    def others() -> bool:
        asked.append(at[0])
        if not answers:
            raise DatabaseBusy
        return answers.pop(0)

    gives_way = GivesWay(others, lambda: at[0])
    assert [gives_way() for _ in range(5)] == [False] * 5
    at[0] += LOOK_S
    assert not gives_way()
    at[0] += LOOK_S
    assert gives_way()
    at[0] += 10
    assert gives_way()  # once seen, it is not asked again
    assert asked == [100.0, 100.0 + LOOK_S, 100.0 + 2 * LOOK_S]
    assert GivesWay(others, lambda: at[0])()

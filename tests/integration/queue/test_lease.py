"""The queue's contract, on SQLite and PostgreSQL, with a clock that only the test moves."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlmodel import select

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.results import commit_result
from heimdallr_ray.catalog.states import JobState, StudyState
from heimdallr_ray.catalog.studies import record_instances, study_by_uid, transition
from heimdallr_ray.catalog.tables import JobRow, StudyRow
from heimdallr_ray.catalog.worklist import event_history, queue_depth, steps_of
from heimdallr_ray.errors import StaleLease
from heimdallr_ray.queue.lease import ATTEMPTS_EXHAUSTED, WORKER_LOST_REPEATEDLY, Lease, LeaseQueue
from heimdallr_ray.queue.statements import MAX_LOST
from tests.support.clock import FakeClock
from tests.support.closing import close_idle_studies
from tests.support.studies import received

LEASE_S = 20.0


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def queue(database: Database, clock: FakeClock) -> LeaseQueue:
    return LeaseQueue(database, clock, LEASE_S, database_time=False)


def _add(database: Database, queue: LeaseQueue, key: str, **options: object) -> None:
    with database.write() as session:
        queue.enqueue(session, "x", key, **options)  # type: ignore[arg-type]


def _claim(queue: LeaseQueue, owner: str = "w", kind: str = "x") -> Lease:
    lease = queue.claim(owner, [kind])
    assert lease is not None
    return lease


def _job(database: Database, key: str = "a") -> JobRow:
    with database.read() as session:
        return session.exec(select(JobRow).where(JobRow.key == key)).one()


def _queued_study(database: Database, clock: FakeClock, *, number: int = 1, max_attempts: int = 3) -> StudyRow:
    with database.write() as session:
        record_instances(session, [received(1, study=number, at=clock.now())], clock.now())
    with database.write() as session:
        close_idle_studies(session, clock.advance(31), 30, (), max_attempts, "test")
    return _study(database, number)


def _study(database: Database, number: int = 1) -> StudyRow:
    with database.read() as session:
        study = study_by_uid(session, f"1.2.{number}")
    assert study is not None
    return study


def test_an_empty_queue_gives_nothing(queue: LeaseQueue) -> None:
    assert queue.claim("w", ["x"]) is None
    assert queue.claim("w", []) is None


def test_a_claim_is_exclusive_and_says_all_about_the_job(
    database: Database, queue: LeaseQueue, clock: FakeClock
) -> None:
    _add(database, queue, "a", payload={"n": [1, None, "é"]}, max_attempts=5, epoch=4)
    lease = _claim(queue)
    assert (lease.kind, lease.key, lease.study_id, lease.epoch, lease.owner) == ("x", "a", None, 4, "w")
    assert (lease.fence, lease.attempt, lease.max_attempts, lease.payload) == (1, 1, 5, {"n": [1, None, "é"]})
    assert (lease.lease_until - clock.now()).total_seconds() == LEASE_S
    assert queue.claim("other", ["x"]) is None


def test_only_the_kinds_asked_for_are_claimed(database: Database, queue: LeaseQueue) -> None:
    _add(database, queue, "a")
    assert queue.claim("w", ["y"]) is None
    assert queue.claim("w", ["y", "x"]) is not None


def test_the_same_key_is_enqueued_once(database: Database, queue: LeaseQueue) -> None:
    _add(database, queue, "a", priority=1)
    _add(database, queue, "a", priority=3)
    assert _job(database).priority == 1
    _claim(queue)
    assert queue.claim("w", ["x"]) is None


def test_a_delayed_job_waits(database: Database, queue: LeaseQueue, clock: FakeClock) -> None:
    _add(database, queue, "a", delay_s=10)
    assert queue.claim("w", ["x"]) is None
    clock.advance(10)
    assert queue.claim("w", ["x"]) is not None


def test_priority_then_waiting_time(database: Database, queue: LeaseQueue, clock: FakeClock) -> None:
    for key, priority in (("routine", 3), ("batch", 9), ("soon", 2), ("routine2", 3), ("critical", 0), ("urgent", 1)):
        _add(database, queue, key, priority=priority)
        clock.advance(1)
    order = [_claim(queue).key for _ in range(6)]
    assert order == ["critical", "urgent", "soon", "routine", "routine2", "batch"]


@pytest.mark.parametrize(
    ("minutes", "priority", "rival", "first"),
    [
        (29.9, 3, 2, "rival"),  # not yet a level
        (30, 3, 2, "old"),  # one level, and older
        (59.9, 3, 1, "rival"),
        (60, 3, 1, "old"),
        (600, 3, 0, "rival"),  # never into P0's level
        (600, 2, 0, "rival"),
        (600, 9, 3, "rival"),  # a batch job never passes live work
        (1, 0, 0, "old"),
    ],
)
def test_age_raises_a_job_but_not_into_the_critical_level(
    database: Database, queue: LeaseQueue, clock: FakeClock, minutes: float, priority: int, rival: int, first: str
) -> None:
    _add(database, queue, "old", priority=priority)
    clock.advance(minutes * 60)
    _add(database, queue, "rival", priority=rival)
    assert _claim(queue).key == first


def test_routine_work_is_not_starved_by_a_stream_of_urgent_work(
    database: Database, queue: LeaseQueue, clock: FakeClock
) -> None:
    _add(database, queue, "routine", priority=3)
    for minute in range(120):
        _add(database, queue, f"urgent{minute}", priority=1)
        clock.advance(60)
        if _claim(queue).key == "routine":
            assert minute >= 59
            return
    raise AssertionError("two hours were not enough")


def test_an_expired_lease_is_taken_over_with_a_greater_fence(
    database: Database, queue: LeaseQueue, clock: FakeClock
) -> None:
    _add(database, queue, "a")
    first = _claim(queue, "w1")
    clock.advance(LEASE_S - 0.001)
    assert queue.claim("w2", ["x"]) is None
    clock.advance(0.001)
    second = _claim(queue, "w2")
    assert (second.job_id, second.fence, second.owner) == (first.job_id, 2, "w2")
    assert (second.attempt, second.lost) == (1, 1)


def test_renewing_keeps_the_lease(database: Database, queue: LeaseQueue, clock: FakeClock) -> None:
    _add(database, queue, "a")
    lease = _claim(queue)
    for _ in range(10):
        clock.advance(LEASE_S - 1)
        lease = queue.renew(lease)
        assert queue.claim("other", ["x"]) is None
    assert (lease.fence, lease.attempt) == (1, 1)


def test_a_stale_holder_changes_nothing(database: Database, queue: LeaseQueue, clock: FakeClock) -> None:
    _add(database, queue, "a")
    stale = _claim(queue, "w1")
    clock.advance(LEASE_S)
    _claim(queue, "w2")
    before = _job(database).model_dump()
    calls = (
        lambda session: queue.finish(session, stale),
        lambda session: queue.fail(session, stale, "c", "d", retry=True),
        lambda session: queue.fail(session, stale, "c", "d", retry=False),
        lambda session: queue.release(session, stale),
        lambda session: queue.hold(session, stale),
        lambda session: queue.record_step(session, stale, "s", "h", {}, 1.0),
    )
    for call in calls:
        with pytest.raises(StaleLease), database.write() as session:
            call(session)
    with pytest.raises(StaleLease):
        queue.renew(stale)
    assert _job(database).model_dump() == before
    with database.read() as session:
        assert steps_of(session, stale.job_id) == []


def test_a_job_ends_once(database: Database, queue: LeaseQueue, clock: FakeClock) -> None:
    _add(database, queue, "a")
    lease = _claim(queue)
    with database.write() as session:
        queue.finish(session, lease)
    with pytest.raises(StaleLease), database.write() as session:
        queue.finish(session, lease)
    clock.advance(1000)
    assert queue.claim("w", ["x"]) is None
    job = _job(database)
    assert (job.state, job.owner, job.lease_until) == (JobState.DONE, None, None)


def test_finishing_rolls_back_with_its_transaction(database: Database, queue: LeaseQueue) -> None:
    _add(database, queue, "a")
    lease = _claim(queue)
    with pytest.raises(ZeroDivisionError), database.write() as session:
        queue.finish(session, lease)
        raise ZeroDivisionError
    assert _job(database).state == JobState.RUNNING


def test_a_failed_attempt_waits_and_the_last_one_kills(database: Database, queue: LeaseQueue, clock: FakeClock) -> None:
    _add(database, queue, "a", max_attempts=2)
    lease = _claim(queue)
    with database.write() as session:
        assert queue.fail(session, lease, "oom", "too big", retry=True, delay_s=5) is JobState.QUEUED
    assert queue.claim("w", ["x"]) is None
    clock.advance(5)
    lease = _claim(queue)
    assert (lease.attempt, lease.last_attempt) == (2, True)
    with database.write() as session:
        assert queue.fail(session, lease, "oom", "too big", retry=True) is JobState.DEAD
    clock.advance(1000)
    assert queue.claim("w", ["x"]) is None
    assert (_job(database).state, _job(database).error_code) == (JobState.DEAD, "oom")


def test_a_hopeless_job_dies_at_once(database: Database, queue: LeaseQueue) -> None:
    _add(database, queue, "a")
    lease = _claim(queue)
    with database.write() as session:
        assert queue.fail(session, lease, "not_dicom", "no", retry=False) is JobState.DEAD
    assert queue.claim("w", ["x"]) is None


def test_giving_back_costs_no_attempt(database: Database, queue: LeaseQueue) -> None:
    _add(database, queue, "a", max_attempts=1)
    for fence in range(1, 6):
        lease = _claim(queue)
        assert (lease.fence, lease.attempt) == (fence, 1)
        with database.write() as session:
            queue.release(session, lease)


def test_a_study_whose_workers_were_killed_more_often_than_it_may_fail_still_ends_done(
    database: Database, queue: LeaseQueue, clock: FakeClock
) -> None:
    _queued_study(database, clock, max_attempts=3)
    for kills in range(4):
        lease = _claim(queue, kind="study")
        assert (lease.attempt, lease.lost) == (1, kills)
        clock.advance(LEASE_S)
    for _ in range(4):
        lease = _claim(queue, kind="study")
        with database.write() as session:
            queue.release(session, lease)
    lease = _claim(queue, kind="study")
    with database.write() as session:
        commit_result(session, lease, {}, (), None, now=clock.now())
    assert _study(database).state == StudyState.DONE


def test_a_job_that_takes_every_worker_down_is_set_aside_and_the_next_one_runs(
    database: Database, queue: LeaseQueue, clock: FakeClock
) -> None:
    _queued_study(database, clock, max_attempts=3)
    for lost in range(MAX_LOST):
        lease = _claim(queue, kind="study")
        assert (lease.attempt, lease.lost) == (1, lost)
        clock.advance(LEASE_S)
    _add(database, queue, "good")
    assert _claim(queue).key == "good"
    study = _study(database)
    assert (study.state, study.reason_code) == (StudyState.FAILED, WORKER_LOST_REPEATEDLY)
    assert f"{MAX_LOST} workers" in (study.reason or "")
    with database.read() as session:
        assert queue_depth(session, ("study",)).dead == 1


def test_a_study_that_fails_in_each_attempt_says_so_and_why(
    database: Database, queue: LeaseQueue, clock: FakeClock
) -> None:
    _queued_study(database, clock, max_attempts=3)
    for attempt in range(1, 4):
        clock.advance(LEASE_S)
        _claim(queue, "killed", kind="study")
        clock.advance(LEASE_S)
        lease = _claim(queue, kind="study")
        assert (lease.attempt, lease.lost) == (attempt, attempt)
        with database.write() as session:
            queue.fail(session, lease, "engine_unavailable", "gone", retry=True)
    study = _study(database)
    assert (study.state, study.reason_code) == (StudyState.FAILED, ATTEMPTS_EXHAUSTED)
    assert study.reason == "engine_unavailable: gone (attempt 3 of 3)"
    assert _job(database, f"{study.id}:1").error_code == "engine_unavailable"


@pytest.mark.parametrize("orderly", [False, True])
def test_leases_of_dead_owners_are_free_at_once_and_those_of_others_stay(
    database: Database, queue: LeaseQueue, clock: FakeClock, orderly: bool
) -> None:
    _queued_study(database, clock)
    _add(database, queue, "a")
    dead = _claim(queue, "here/1/x/0", "study")
    living = _claim(queue, "here/2/y/0")
    with database.write() as session:
        asked: list[str] = []
        released = queue.release_dead_owners(
            session, lambda owner: not asked.append(owner) and owner == dead.owner, orderly=orderly
        )
    assert (released, sorted(asked)) == (1, [dead.owner, living.owner])
    again = _claim(queue, "here/3/z/0", "study")
    assert (again.job_id, again.attempt, again.lost) == (dead.job_id, 1, 0 if orderly else 1)
    assert queue.claim("here/3/z/1", ["x"]) is None
    queue.renew(living)
    with pytest.raises(StaleLease):
        queue.renew(dead)


def test_an_owner_wrongly_called_dead_goes_on_while_nobody_took_its_job(
    database: Database, queue: LeaseQueue, clock: FakeClock
) -> None:
    _add(database, queue, "a")
    lease = _claim(queue)
    with database.write() as session:
        assert queue.release_dead_owners(session, lambda _: True) == 1
        assert queue.release_dead_owners(session, lambda _: True) == 0
    queue.renew(lease)
    assert queue.claim("other", ["x"]) is None


def test_the_study_follows_its_job(database: Database, queue: LeaseQueue, clock: FakeClock) -> None:
    _queued_study(database, clock)
    lease = _claim(queue, "w1", "study")
    assert _study(database).state == StudyState.RUNNING
    clock.advance(LEASE_S)
    lease = _claim(queue, "w2", "study")
    with database.write() as session:
        queue.fail(session, lease, "engine_unavailable", "gone", retry=True)
    assert (_study(database).state, _study(database).reason_code) == (StudyState.QUEUED, "engine_unavailable")
    lease = _claim(queue, "w3", "study")
    assert _study(database).reason_code is None
    with database.write() as session:
        queue.fail(session, lease, "not_a_volume", "tilted", retry=False)
    study = _study(database)
    assert (study.state, study.reason_code, study.reason) == (
        StudyState.FAILED,
        "not_a_volume",
        "tilted",
    )
    with database.read() as session:
        moves = [(e.old, e.new, e.actor) for e in event_history(session, study.id) if e.kind == "study.state"]
    assert moves == [
        (None, "receiving", "dicom"),
        ("receiving", "queued", "test"),
        ("queued", "running", "w1"),
        ("running", "running", "w2"),
        ("running", "queued", "w2"),
        ("queued", "running", "w3"),
        ("running", "failed", "w3"),
    ]


def test_giving_back_puts_the_study_back_in_the_queue(database: Database, queue: LeaseQueue, clock: FakeClock) -> None:
    _queued_study(database, clock)
    lease = _claim(queue, "w1", "study")
    with database.write() as session:
        queue.release(session, lease)
    assert _study(database).state == StudyState.QUEUED
    assert _claim(queue, "w2", "study").attempt == 1


def test_the_job_of_a_cancelled_study_is_set_aside(database: Database, queue: LeaseQueue, clock: FakeClock) -> None:
    for number in (1, 2):
        _queued_study(database, clock, number=number)
    with database.write() as session:
        transition(session, _study(database, 1).id, StudyState.CANCELLED, now=clock.now(), actor="somebody")
    lease = _claim(queue, kind="study")
    assert lease.study_id == _study(database, 2).id
    assert _study(database, 1).state == StudyState.CANCELLED
    assert queue.claim("w", ["study"]) is None
    with database.read() as session:
        states = [job.state for job in session.exec(select(JobRow).order_by(text("id"))).all()]
    assert states == [JobState.CANCELLED, JobState.RUNNING]


def test_a_step_is_recorded_once_and_found_by_the_next_attempt(
    database: Database, queue: LeaseQueue, clock: FakeClock
) -> None:
    _add(database, queue, "a")
    first = _claim(queue, "w1")
    with database.write() as session:
        queue.record_step(session, first, "segment", "h1", {"sha256": "aa"}, 1.5)
    clock.advance(LEASE_S)
    second = _claim(queue, "w2")
    with database.write() as session:
        queue.record_step(session, second, "segment", "h1", {"sha256": "other"}, 9.0)
        queue.record_step(session, second, "segment", "h2", {"sha256": "bb"}, 2.0)
    with database.read() as session:
        assert queue.step_output(session, second, "segment", "h1") == {"sha256": "aa"}
        assert queue.step_output(session, second, "segment", "h2") == {"sha256": "bb"}
        assert queue.step_output(session, second, "segment", "h3") is None
        assert [(row.step, row.attempt, row.seconds) for row in steps_of(session, first.job_id)] == [
            ("segment", 1, 1.5),
            ("segment", 1, 2.0),
        ]


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
def test_postgresql_leases_by_the_servers_time(database: Database, queue: LeaseQueue) -> None:
    """A node whose clock is wrong by years neither steals nor starves."""
    _add(database, queue, "a", delay_s=-1e8)
    real = LeaseQueue(database, FakeClock(), LEASE_S)
    lease = _claim(real)
    with database.read() as session:
        left = lease.lease_until - real.now(session)
    assert 0 < left.total_seconds() <= LEASE_S
    assert lease.lease_until.year >= 2026

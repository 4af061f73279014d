"""A study that ended without a result is worked on again when somebody asks, and the history says who."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlmodel import select

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.jobs import cancel_jobs
from heimdallr_ray.catalog.results import commit_result
from heimdallr_ray.catalog.retrying import retry_study
from heimdallr_ray.catalog.states import StudyState
from heimdallr_ray.catalog.studies import record_instances, study_by_uid, transition
from heimdallr_ray.catalog.tables import JobRow, StudyRow
from heimdallr_ray.catalog.worklist import event_history
from heimdallr_ray.errors import NotFound, NotRetryable
from heimdallr_ray.queue.lease import Lease, LeaseQueue
from tests.support.clock import FakeClock
from tests.support.closing import close_idle_studies
from tests.support.studies import received

UID = "1.2.1"


class Site:
    """One study, queued."""

    def __init__(self, database: Database) -> None:
        self.database, self.clock = database, FakeClock()
        self.queue = LeaseQueue(database, self.clock, 20, database_time=False)
        self.images_arrive(1)
        self.close()

    def images_arrive(self, number: int) -> None:
        with self.database.write() as session:
            record_instances(session, [received(number)], self.clock.now())

    def close(self) -> None:
        with self.database.write() as session:
            close_idle_studies(session, self.clock.advance(31), 30, (), 3, "test")

    def claim(self) -> Lease:
        lease = self.queue.claim("w", ["study"])
        assert lease is not None
        return lease

    def fail(self) -> None:
        lease = self.claim()
        with self.database.write() as session:
            self.queue.fail(session, lease, "weights_missing", "gone", retry=False)

    def not_applicable(self) -> None:
        lease = self.claim()
        with self.database.write() as session:
            self.queue.finish(session, lease)
        self._move(StudyState.NOT_APPLICABLE)

    def cancel(self) -> None:
        with self.database.write() as session:
            cancel_jobs(session, self.study.id, now=self.clock.now(), actor="test", reason="test")
        self._move(StudyState.CANCELLED)

    def _move(self, state: StudyState) -> None:
        with self.database.write() as session:
            transition(session, self.study.id, state, now=self.clock.now(), actor="test")

    def done(self) -> None:
        lease = self.claim()
        with self.database.write() as session:
            commit_result(session, lease, {}, (), None, now=self.clock.now())

    def retry(self, uid: str = UID) -> None:
        with self.database.write() as session:
            retry_study(session, uid, now=self.clock.now(), max_attempts=5, actor="cli:somebody")

    @property
    def study(self) -> StudyRow:
        with self.database.read() as session:
            study = study_by_uid(session, UID)
        assert study is not None
        return study

    @property
    def jobs(self) -> list[JobRow]:
        with self.database.read() as session:
            return sorted(session.exec(select(JobRow)).all(), key=lambda job: job.id or 0)


@pytest.fixture
def site(database: Database) -> Site:
    return Site(database)


@pytest.mark.parametrize("end", [Site.fail, Site.not_applicable, Site.cancel])
def test_a_study_that_ended_without_a_result_is_queued_again_and_ends_done(
    site: Site, end: Callable[[Site], None]
) -> None:
    end(site)
    manifest = site.study.manifest_sha256
    for number in (1, 2):
        before = site.study.state
        site.retry()
        study, job = site.study, site.jobs[-1]
        assert (study.state, study.reason_code, study.epoch, study.manifest_sha256) == ("queued", None, 1, manifest)
        assert (job.key, job.attempt, job.max_attempts, job.lost) == (f"{study.id}:1:r{number}", 0, 5, 0)
        assert job.payload == {"manifest_sha256": manifest}
        with site.database.read() as session:
            asked, moved = event_history(session, study.id)[-2:]
        assert (asked.kind, asked.actor, asked.old, asked.new) == ("study.retry", "cli:somebody", before, "queued")
        assert (moved.kind, moved.actor, moved.old, moved.new) == ("study.state", "cli:somebody", before, "queued")
        if number == 1:
            site.fail()
    site.done()
    assert site.study.state == "done"


def test_the_history_keeps_why_it_had_failed(site: Site) -> None:
    site.fail()
    site.retry()
    with site.database.read() as session:
        (asked,) = [event for event in event_history(session, site.study.id) if event.kind == "study.retry"]
    assert asked.payload["reason_code"] == "weights_missing"
    assert "gone" in (asked.reason or "")


@pytest.mark.parametrize("state", ["queued", "running", "receiving", "done", "already retried"])
def test_a_study_that_is_alive_or_has_a_result_is_left_alone(site: Site, state: str) -> None:
    if state == "running":
        site.claim()
    elif state == "done":
        site.done()
    elif state == "receiving":
        site.images_arrive(2)
    elif state == "already retried":
        site.fail()
        site.retry()
    before = site.study.model_dump(), [job.model_dump() for job in site.jobs]
    with pytest.raises(NotRetryable):
        site.retry()
    assert (site.study.model_dump(), [job.model_dump() for job in site.jobs]) == before


def test_a_study_cancelled_while_it_came_in_is_closed_with_what_is_there(site: Site) -> None:
    site.images_arrive(2)
    site.cancel()
    assert site.study.manifest_sha256 is None
    site.retry()
    study, job = site.study, site.jobs[-1]
    assert (study.epoch, study.state, study.closed_at) == (2, "queued", site.clock.now())
    assert study.manifest_sha256 is not None
    assert (job.key, job.epoch) == (f"{study.id}:2:r1", 2)
    site.done()
    assert site.study.state == "done"


def test_there_is_no_such_study(site: Site) -> None:
    with pytest.raises(NotFound):
        site.retry("9.9")

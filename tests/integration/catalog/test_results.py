"""A result, its artifacts, the study and the end of the job: all or nothing, and never twice."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlmodel import select

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.results import NewArtifact, SeriesChoice, commit_result, current_result, results_of
from heimdallr_ray.catalog.states import JobState, StudyState, Urgency
from heimdallr_ray.catalog.studies import record_instances, study_by_uid
from heimdallr_ray.catalog.tables import ArtifactRow, JobRow, ResultRow, StudyRow
from heimdallr_ray.catalog.worklist import study_detail
from heimdallr_ray.errors import BadIdentifier, NotFound, StaleLease
from heimdallr_ray.queue.lease import Lease, LeaseQueue
from tests.support.clock import FakeClock
from tests.support.closing import close_idle_studies
from tests.support.studies import digest, received

ARTIFACTS = (
    NewArtifact("results.json", "results", "application/json", digest("r"), 10),
    NewArtifact("ct.nii.gz", "label_map", "application/gzip", digest("l"), 5_000_000_000, {"labels": 3}),
)


class Site:
    """One study on its way through the queue."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.clock = FakeClock()
        self.queue = LeaseQueue(database, self.clock, 20, database_time=False)
        self.images = 0

    def images_arrive_and_close(self, count: int = 2) -> None:
        batch = [received(self.images + n) for n in range(1, count + 1)]
        self.images += count
        with self.database.write() as session:
            record_instances(session, batch, self.clock.now())
        with self.database.write() as session:
            close_idle_studies(session, self.clock.advance(30), 30, (), 3, "test")

    def claim(self) -> Lease:
        lease = self.queue.claim("worker", ["study"])
        assert lease is not None
        return lease

    def commit(
        self, lease: Lease, urgency: Urgency | None = Urgency.P3, selection: tuple[SeriesChoice, ...] = ()
    ) -> ResultRow:
        with self.database.write() as session:
            return commit_result(
                session,
                lease,
                {"epoch": lease.epoch},
                ARTIFACTS,
                urgency,
                now=self.clock.now(),
                urgency_reason=f"rule for {urgency}",
                synthetic=True,
                selection=selection,
            )

    @property
    def study(self) -> StudyRow:
        with self.database.read() as session:
            study = study_by_uid(session, "1.2.1")
        assert study is not None
        return study

    def counts(self) -> tuple[int, int]:
        with self.database.read() as session:
            return len(session.exec(select(ResultRow)).all()), len(session.exec(select(ArtifactRow)).all())


@pytest.fixture
def site(database: Database) -> Site:
    site = Site(database)
    site.images_arrive_and_close()
    return site


def test_a_result_finishes_everything_at_once(site: Site) -> None:
    lease = site.claim()
    result = site.commit(lease, Urgency.P1, (SeriesChoice("1.2.1.1", True, geometry={"shape": [1, 2, 3]}),))
    with site.database.read() as session:
        detail = study_detail(session, "1.2.1")
        assert detail is not None
        assert detail.result is not None
        assert detail.result.id == result.id
    assert (detail.study.state, detail.study.urgency, detail.study.urgency_reason) == (
        StudyState.DONE,
        "P1",
        "rule for P1",
    )
    assert (detail.study.done_at, detail.study.synthetic) == (site.clock.now(), True)
    assert (result.version, result.epoch, result.fence, result.document) == (1, 1, lease.fence, {"epoch": 1})
    assert [(item.name, item.size, item.meta, item.synthetic) for item in detail.artifacts] == [
        ("ct.nii.gz", 5_000_000_000, {"labels": 3}, True),
        ("results.json", 10, {}, True),
    ]
    assert (detail.series[0].chosen, detail.series[0].geometry) == (True, {"shape": [1, 2, 3]})
    assert [job.state for job in detail.jobs] == [JobState.DONE]


def test_a_job_never_has_two_results(site: Site) -> None:
    lease = site.claim()
    site.commit(lease)
    with pytest.raises(StaleLease):
        site.commit(lease)
    assert site.counts() == (1, 2)


def test_a_worker_that_was_overtaken_commits_nothing(site: Site) -> None:
    late = site.claim()
    site.clock.advance(20)
    winner = site.claim()
    with pytest.raises(StaleLease):
        site.commit(late, Urgency.P0)
    assert site.counts() == (0, 0)
    assert (site.study.state, site.study.urgency) == (StudyState.RUNNING, None)
    site.commit(winner)
    with pytest.raises(StaleLease):
        site.commit(late, Urgency.P0)
    assert (site.counts(), site.study.urgency) == ((1, 2), "P3")


@pytest.mark.parametrize("fault", ["artifact", "series"])
def test_a_commit_that_fails_at_its_end_leaves_nothing(site: Site, fault: str) -> None:
    lease = site.claim()
    if fault == "series":
        with pytest.raises(NotFound):
            site.commit(lease, selection=(SeriesChoice("9.9", True),))
    else:
        bad = NewArtifact("x", "id", "text/plain", digest("x")[:10], 1)  # type: ignore[arg-type]
        with pytest.raises(BadIdentifier), site.database.write() as session:
            commit_result(session, lease, {}, [*ARTIFACTS, bad], None, now=site.clock.now())
    assert (site.counts(), site.study.state) == ((0, 0), StudyState.RUNNING)
    site.commit(lease)
    assert site.counts() == (1, 2)


def test_images_during_the_work_make_it_stale(site: Site) -> None:
    """Never one result over mixed epochs."""
    lease = site.claim()
    site.images_arrive_and_close(10)
    with pytest.raises(StaleLease):
        site.commit(lease)
    with pytest.raises(StaleLease):
        site.queue.renew(lease)
    assert (site.counts(), site.study.state, site.study.epoch) == ((0, 0), StudyState.QUEUED, 2)
    site.commit(site.claim())
    assert site.counts() == (1, 2)


def test_ten_late_images_supersede_the_result_visibly(site: Site) -> None:
    first = site.commit(site.claim(), Urgency.P1)
    site.images_arrive_and_close(10)
    with site.database.read() as session:
        standing = current_result(session, site.study.id)
    assert standing is not None  # The old result is shown until the new one is there.
    second = site.commit(site.claim(), Urgency.P3)
    with site.database.read() as session:
        newest, oldest = results_of(session, site.study.id)
        jobs = session.exec(select(JobRow)).all()
    assert (newest.id, newest.epoch, newest.version, newest.superseded_by) == (second.id, 2, 2, None)
    assert (oldest.id, oldest.epoch, oldest.version, oldest.superseded_by) == (first.id, 1, 1, second.id)
    assert (newest.urgency, site.study.urgency, site.study.urgency_reason) == ("P3", "P1", "rule for P1")
    assert [job.state for job in jobs] == [JobState.DONE, JobState.DONE]
    assert site.study.done_at == site.clock.now() and second.created_at - first.created_at == timedelta(seconds=30)


def test_no_ruling_is_not_routine(site: Site) -> None:
    result = site.commit(site.claim(), None)
    assert (result.urgency, site.study.urgency, site.study.state) == (None, None, StudyState.DONE)
    assert site.study.urgency_reason == "rule for None"


@pytest.mark.parametrize(("first", "told"), [(Urgency.P3, "rule for None"), (Urgency.P1, "rule for P1")])
def test_a_newer_run_without_a_ruling_says_why_beside_an_older_p3_and_leaves_what_was_raised(
    site: Site, first: Urgency, told: str
) -> None:
    site.commit(site.claim(), first)
    site.images_arrive_and_close(10)
    assert site.commit(site.claim(), None).urgency is None
    assert (site.study.urgency, site.study.urgency_reason) == (first.value, told)

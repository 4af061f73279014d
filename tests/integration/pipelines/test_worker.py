"""The worker gives back what it cannot finish when it is stopped, and ends what it can."""

from __future__ import annotations

import threading
from collections.abc import Generator
from pathlib import Path

import pytest
from sqlmodel import select

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.results import commit_result
from heimdallr_ray.catalog.states import JobState
from heimdallr_ray.catalog.studies import record_instances, study_by_uid
from heimdallr_ray.catalog.tables import JobRow, StudyRow
from heimdallr_ray.clock import SystemClock
from heimdallr_ray.config import Settings, load
from heimdallr_ray.errors import StaleLease
from heimdallr_ray.pipelines.worker import StudyWorker
from heimdallr_ray.queue.lease import Lease, LeaseQueue
from heimdallr_ray.queue.owners import owner_name
from tests.support.closing import close_idle_studies
from tests.support.studies import received

LEASE_S = 600.0
"""Nothing in these tests may wait for a lease to run out."""
WAIT_S = 30.0


class Bench:
    """A study in the queue, and workers that hold it until they are told."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database, self.clock = database, SystemClock()
        self.queue = LeaseQueue(database, self.clock, LEASE_S)
        self.settings: Settings = load({}, None, data_dir=folder, profile="demo", max_parallel_cases=1)
        self.leases: list[Lease] = []
        self.running = threading.Event()
        self.finish = threading.Event()
        self.ended = threading.Event()
        self.deaf = threading.Event()
        with database.write() as session:
            record_instances(session, [received(1)], self.clock.now())
        with database.write() as session:
            close_idle_studies(session, received(1).received_at.replace(year=2100), 30, (), 3, "test")
        with database.write() as session:
            for job in session.exec(select(JobRow)).all():
                job.run_at = self.clock.now()
                session.add(job)

    def worker(self) -> StudyWorker:
        self.running.clear()
        self.ended.clear()
        worker = StudyWorker(self.database, self.queue, self._run, self.settings, owner_name())
        worker.start()
        assert self.running.wait(WAIT_S)
        return worker

    def _run(self, lease: Lease, lost: threading.Event) -> None:
        self.leases.append(lease)
        self.running.set()
        try:
            for _ in range(int(WAIT_S / 0.01)):
                if self.finish.wait(0.01):
                    with self.database.write() as session:
                        commit_result(session, lease, {}, (), None, now=self.clock.now())
                    return
                if lost.is_set() and not self.deaf.is_set():
                    raise StaleLease("lost")
            raise AssertionError("nobody stopped it")
        finally:
            self.ended.set()

    def study(self) -> StudyRow:
        with self.database.read() as session:
            study = study_by_uid(session, "1.2.1")
        assert study is not None
        return study

    def job(self) -> JobRow:
        with self.database.read() as session:
            return session.exec(select(JobRow)).one()


@pytest.fixture
def bench(database: Database, tmp_path: Path) -> Generator[Bench]:
    made = Bench(database, tmp_path)
    yield made
    made.finish.set()


def test_a_study_that_is_stopped_four_times_is_taken_at_once_by_the_next_start_and_ends_done(bench: Bench) -> None:
    for _ in range(4):
        worker = bench.worker()
        assert worker.stop(0.05) == 1
        assert (bench.job().state, bench.job().attempt, bench.job().lost) == (JobState.QUEUED, 0, 0)
        assert bench.study().state == "queued"
        assert bench.ended.wait(WAIT_S)
        assert worker.stop(WAIT_S) == 0
    worker = bench.worker()
    bench.finish.set()
    assert worker.stop(WAIT_S) == 0
    assert (bench.study().state, bench.job().state) == ("done", JobState.DONE)
    assert [(lease.attempt, lease.lost) for lease in bench.leases] == [(1, 0)] * 5


def test_what_a_thread_still_does_after_its_lease_was_given_back_is_thrown_away(bench: Bench) -> None:
    bench.deaf.set()
    worker = bench.worker()
    assert worker.stop(0.05) == 1
    bench.finish.set()
    assert bench.ended.wait(WAIT_S)
    worker.stop(WAIT_S)
    assert (bench.study().state, bench.job().state) == ("queued", JobState.QUEUED)


def test_a_stopped_worker_is_not_taken_for_a_broken_one(bench: Bench) -> None:
    worker = bench.worker()
    assert worker.alive
    worker.stop(0.05)
    assert bench.ended.wait(WAIT_S)
    worker.stop(WAIT_S)
    assert worker.alive


def test_a_stopped_worker_claims_nothing(bench: Bench) -> None:
    worker = bench.worker()
    worker.stop(0.05)
    assert bench.ended.wait(WAIT_S)
    worker.stop(WAIT_S)
    assert len(bench.leases) == 1
    assert bench.job().state == JobState.QUEUED

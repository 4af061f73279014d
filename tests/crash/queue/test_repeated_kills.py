"""A job whose worker is killed more often than the job may fail is done in the end, once."""

from __future__ import annotations

import multiprocessing
import time

import pytest
from sqlalchemy import text
from sqlmodel import select

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.tables import JobRow
from heimdallr_ray.clock import SystemClock
from heimdallr_ray.queue.lease import LeaseQueue
from tests.support.queue_workers import KIND, claim_then_wait_to_commit, commit_effect, make_effect_table

LEASE_S = 0.2
KILLS = 4
MAX_ATTEMPTS = 3


@pytest.mark.timeout(280)
def test_four_killed_workers_do_not_use_up_three_attempts(database: Database) -> None:
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.support.queue_workers"])
    queue = LeaseQueue(database, SystemClock(), LEASE_S)
    url = database.engine.url.render_as_string(hide_password=False)
    make_effect_table(database)
    with database.write() as session:
        queue.enqueue(session, KIND, "only", max_attempts=MAX_ATTEMPTS)
    fences: list[int] = []
    for _ in range(KILLS):
        time.sleep(LEASE_S + 0.05)
        ours, theirs = processes.Pipe()
        worker = processes.Process(target=claim_then_wait_to_commit, args=(url, LEASE_S, theirs, 1), daemon=True)
        worker.start()
        assert ours.poll(60)
        _, fence = ours.recv()
        fences.append(fence)
        worker.kill()
        worker.join(10)
    deadline = time.monotonic() + 30
    while (lease := queue.claim("last", [KIND])) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (lease.attempt, lease.lost) == (1, KILLS)
    commit_effect(database, queue, lease)
    with database.read() as session:
        assert session.connection().execute(text("SELECT count(*) FROM effect")).scalar_one() == 1
        job = session.exec(select(JobRow)).one()
    assert (job.state, job.lost, job.attempt) == ("done", KILLS, 1)
    assert fences == [1, 2, 3, 4]

"""Workers are killed and stopped at random moments; every job has its effect exactly once."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Generator
from multiprocessing.context import ForkServerContext, ForkServerProcess

import pytest
from sqlalchemy import text

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.worklist import queue_depth
from heimdallr_ray.clock import SystemClock
from heimdallr_ray.queue.lease import LeaseQueue
from tests.support.queue_workers import (
    KIND,
    claim_then_wait_to_commit,
    commit_effect,
    make_effect_table,
    work_until_killed,
)

_log = logging.getLogger(__name__)

WORKERS = 4
KILL_EVERY_S = 0.15
MIN_KILLS = 50
BATCH = 200
STOPS = 50


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Children that start in milliseconds, forked from a process without threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.queue_workers"])
    return context


@contextlib.contextmanager
def _each_job_once(database: Database, queue: LeaseQueue) -> Generator[Callable[[int], None]]:
    """Gives what adds that many jobs; at the end each of them must have had its effect once."""
    make_effect_table(database)
    jobs = 0

    def add(count: int) -> None:
        nonlocal jobs
        with database.write() as session:
            for number in range(jobs, jobs + count):
                queue.enqueue(session, KIND, str(number), max_attempts=1000)
        jobs += count

    yield add
    with database.read() as session:
        connection = session.connection()
        effects = connection.execute(text("SELECT count(*), count(DISTINCT job_id) FROM effect")).one()
        ends = connection.execute(text("SELECT count(*) FROM event WHERE kind = 'job.done'")).scalar_one()
        states = connection.execute(text("SELECT DISTINCT state FROM job")).scalars().all()
    assert (tuple(effects), ends, list(states)) == ((jobs, jobs), jobs, ["done"])
    database.check(integrity=True)


@pytest.mark.timeout(280)
@pytest.mark.parametrize("dialect", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)], indirect=True)
def test_every_job_has_one_effect_although_workers_are_killed(database: Database, processes: ForkServerContext) -> None:
    """Check 4 of the reliability list: 4 workers, one killed every 150 ms, at least 50 kills."""
    queue = LeaseQueue(database, SystemClock(), 1.0)
    url = database.engine.url.render_as_string(hide_password=False)
    chance = random.Random(4)

    def start() -> ForkServerProcess:
        process = processes.Process(target=work_until_killed, args=(url, 1.0), daemon=True)
        process.start()
        return process

    with _each_job_once(database, queue) as add:
        add(BATCH)
        workers = [start() for _ in range(WORKERS)]
        started, kills = time.monotonic(), 0
        try:
            while True:
                time.sleep(KILL_EVERY_S)
                with database.read() as session:
                    depth = queue_depth(session)
                if depth.queued == 0 and kills < MIN_KILLS:
                    add(BATCH)  # however fast the machine is, there is work at each kill
                elif depth.queued + depth.running == 0:
                    break
                victim = chance.randrange(WORKERS)
                os.kill(workers[victim].pid or 0, signal.SIGKILL)
                workers[victim].join(10)
                workers[victim] = start()
                kills += 1
        finally:
            for process in workers:
                process.kill()
                process.join(10)
    _log.info("%d kills, %.1f s", kills, time.monotonic() - started)
    assert kills >= MIN_KILLS


@pytest.mark.timeout(280)
def test_a_stopped_worker_commits_nothing_when_it_wakes_up(database: Database, processes: ForkServerContext) -> None:
    """Check 5 of the reliability list: stopped past its lease, overtaken, woken: refused 50 times of 50."""
    lease_s = 0.05
    # The overtaker's own lease is long: on a busy machine a commit may take longer than the sleeper's.
    queue = LeaseQueue(database, SystemClock(), 60.0)
    url = database.engine.url.render_as_string(hide_password=False)
    ours, theirs = processes.Pipe()
    answers: list[str] = []
    with _each_job_once(database, queue) as add:
        add(2 * STOPS)
        sleeper = processes.Process(target=claim_then_wait_to_commit, args=(url, lease_s, theirs, STOPS), daemon=True)
        sleeper.start()
        pid = sleeper.pid or 0
        try:
            for _ in range(STOPS):
                assert ours.poll(60)
                job_id, fence = ours.recv()
                os.kill(pid, signal.SIGSTOP)
                overtaker = None
                deadline = time.monotonic() + 30
                while overtaker is None and time.monotonic() < deadline:
                    time.sleep(lease_s)
                    overtaker = queue.claim("overtaker", [KIND])
                    if overtaker is not None and overtaker.job_id != job_id:
                        # Another job came first in the order; it is as good as any, the stopped one is next.
                        commit_effect(database, queue, overtaker)
                        overtaker = None
                assert overtaker is not None
                assert overtaker.fence > fence
                commit_effect(database, queue, overtaker)
                ours.send("go")
                os.kill(pid, signal.SIGCONT)
                assert ours.poll(60)
                answers.append(ours.recv())
        finally:
            # After its last answer it ends by itself.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
            sleeper.kill()
            sleeper.join(10)
        while (lease := queue.claim("last", [KIND])) is not None:
            commit_effect(database, queue, lease)
    assert answers == ["stale"] * STOPS

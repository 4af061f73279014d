"""Worker processes that the crash tests kill and stop. Each finished job leaves one row in `effect`, without a key."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing.connection import Connection

from sqlalchemy import text

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.clock import SystemClock
from heimdallr_ray.errors import Retryable, StaleLease
from heimdallr_ray.queue.lease import Lease, LeaseQueue

KIND = "crash"
EFFECT = text("INSERT INTO effect (job_id, fence) VALUES (:job_id, :fence)")


def make_effect_table(database: Database) -> None:
    with database.write() as session:
        session.connection().execute(text("CREATE TABLE effect (job_id BIGINT NOT NULL, fence BIGINT NOT NULL)"))


def commit_effect(database: Database, queue: LeaseQueue, lease: Lease) -> None:
    """The effect and the end of the job, in one transaction; the effect first, so that the fence must undo it."""
    with database.write() as session:
        session.connection().execute(EFFECT, {"job_id": lease.job_id, "fence": lease.fence})
        queue.finish(session, lease)


def work_until_killed(url: str, lease_s: float) -> None:
    """Claim and finish jobs; ends by SIGKILL, or with the parent."""
    database = Database(url)
    queue = LeaseQueue(database, SystemClock(), lease_s)
    owner = f"pid{os.getpid()}"
    parent = os.getppid()
    while os.getppid() == parent:
        try:
            lease = queue.claim(owner, [KIND])
            if lease is None:
                time.sleep(0.02)
                continue
            commit_effect(database, queue, lease)
        except Retryable:
            time.sleep(0.02)


def claim_then_wait_to_commit(url: str, lease_s: float, pipe: Connection, rounds: int) -> None:
    """Claim, say so, wait for the word, try to commit, say how that ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    database = Database(url)
    queue = LeaseQueue(database, SystemClock(), lease_s)
    for _ in range(rounds):
        lease = queue.claim("sleeper", [KIND])
        assert lease is not None
        pipe.send((lease.job_id, lease.fence))
        if not pipe.poll(60):
            return
        pipe.recv()
        try:
            commit_effect(database, queue, lease)
        except StaleLease:
            pipe.send("stale")
        else:
            pipe.send("committed")

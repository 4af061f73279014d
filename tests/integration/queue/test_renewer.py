"""The renewer keeps a lease, and says when it is lost."""

from __future__ import annotations

import logging
import time

import pytest

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.clock import SystemClock
from heimdallr_ray.errors import DatabaseBusy, StaleLease
from heimdallr_ray.queue.lease import Lease, LeaseQueue
from heimdallr_ray.queue.renewer import Renewer

LEASE_S = 1.5
EVERY_S = 0.2


class DeafQueue(LeaseQueue):
    """A queue whose database stops answering."""

    def renew(self, lease: Lease, timeout_s: float | None = None) -> Lease:
        raise DatabaseBusy


def _claimed(database: Database, kind: type[LeaseQueue] = LeaseQueue) -> tuple[LeaseQueue, Lease]:
    queue = kind(database, SystemClock(), LEASE_S)
    with database.write() as session:
        queue.enqueue(session, "x", "a")
    lease = queue.claim("w", ["x"])
    assert lease is not None
    return queue, lease


def test_a_lease_outlives_its_length_while_it_is_renewed(database: Database) -> None:
    queue, lease = _claimed(database)
    with Renewer(queue, lease, EVERY_S) as renewer:
        end = time.monotonic() + 2 * LEASE_S
        while time.monotonic() < end:
            assert queue.claim("thief", ["x"]) is None
            time.sleep(0.1)
        renewer.check()
        assert renewer.lease.lease_until > lease.lease_until
    with database.write() as session:
        queue.finish(session, renewer.lease)


def test_a_stolen_lease_is_noticed(database: Database) -> None:
    queue, lease = _claimed(database)
    with Renewer(queue, lease, EVERY_S) as renewer:
        with database.write() as session:
            queue.release(session, lease)
        assert queue.claim("thief", ["x"]) is not None
        assert renewer.lost.wait(LEASE_S)
        with pytest.raises(StaleLease):
            renewer.check()


def test_a_database_that_does_not_answer_loses_the_lease_in_time(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    queue, lease = _claimed(database, DeafQueue)
    started = time.monotonic()
    with caplog.at_level(logging.WARNING), Renewer(queue, lease, EVERY_S) as renewer:
        assert renewer.lost.wait(10 * LEASE_S)
        assert time.monotonic() - started >= LEASE_S - EVERY_S
    assert "lease not renewed" in caplog.text


def test_the_threads_end_with_the_block(database: Database) -> None:
    import threading

    before = threading.active_count()
    queue, lease = _claimed(database)
    with Renewer(queue, lease, 3600) as renewer:
        assert threading.active_count() == before + 2
    assert threading.active_count() == before
    assert not renewer.lost.is_set()

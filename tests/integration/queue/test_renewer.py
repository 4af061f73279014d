"""The renewer keeps a lease, and says when it is lost."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.clock import SystemClock
from heimdallr_ray.errors import DatabaseBusy, StaleLease
from heimdallr_ray.queue.lease import Lease, LeaseQueue
from heimdallr_ray.queue.renewer import Renewer

LEASE_S = 3.0  # fifteen renewals: a busy disk may hold some of them up
EVERY_S = 0.2
LONG_LEASE_S = 120.0
LONG = pytest.mark.parametrize("dialect", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)], indirect=True)


class DeafQueue(LeaseQueue):
    """A queue whose database stops answering."""

    def renew(self, lease: Lease, timeout_s: float | None = None) -> Lease:
        raise DatabaseBusy


def _claimed(
    database: Database, kind: type[LeaseQueue] = LeaseQueue, lease_s: float = LEASE_S
) -> tuple[LeaseQueue, Lease]:
    queue = kind(database, SystemClock(), lease_s)
    with database.write() as session:
        queue.enqueue(session, "x", "a")
    lease = queue.claim("w", ["x"])
    assert lease is not None
    return queue, lease


@LONG
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
    queue, lease = _claimed(database, lease_s=LONG_LEASE_S)
    with Renewer(queue, lease, EVERY_S) as renewer:
        with database.write() as session:
            queue.release(session, lease)
        assert queue.claim("thief", ["x"]) is not None
        # By the next renewal, not by the end of the lease.
        assert renewer.lost.wait(LONG_LEASE_S / 4)
        with pytest.raises(StaleLease):
            renewer.check()


@LONG
def test_a_database_that_does_not_answer_loses_the_lease_in_time(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    started = time.monotonic()
    queue, lease = _claimed(database, DeafQueue)
    with caplog.at_level(logging.WARNING), Renewer(queue, lease, EVERY_S) as renewer:
        assert renewer.lost.wait(10 * LEASE_S)
        assert time.monotonic() - started >= LEASE_S - EVERY_S
    assert "lease.not_renewed" in caplog.text


def test_the_threads_end_with_the_block(database: Database) -> None:
    queue, lease = _claimed(database, lease_s=LONG_LEASE_S)
    before = set(threading.enumerate())
    with Renewer(queue, lease, 3600) as renewer:
        assert len(set(threading.enumerate()) - before) == 2
    assert set(threading.enumerate()) <= before
    assert not renewer.lost.is_set()

"""Work that nobody waits for: claimed only while nothing else waits or runs, given back as soon as something does."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import timedelta

from heimdallr_ray.catalog.ahead import AHEAD_JOB, Outcome, count
from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.events import record_event
from heimdallr_ray.catalog.states import JobState
from heimdallr_ray.errors import HeimdallrError
from heimdallr_ray.queue import statements
from heimdallr_ray.queue.lease import Lease, LeaseQueue, lease_of

log = logging.getLogger(__name__)

MAX_CLAIMS = 5
"""A job that had to give way so often is given up."""
LOOK_S = 0.25
"""How often work in progress looks whether other work waits."""
_ACTOR = "queue"


class IdleQueue:
    """The part of the lease table that holds labels to be made ahead of their studies.

    Their jobs name no study, so neither failure nor death of one ever moves a study.
    """

    def __init__(self, database: Database, queue: LeaseQueue) -> None:
        """`queue` is that of all work; leases from here are renewed, held, finished and failed there."""
        self._database = database
        self._queue = queue
        self._statements = statements.BY_DIALECT[database.dialect]

    def others(self) -> bool:
        """True where any other work waits or runs.

        Raises:
            DatabaseBusy: not known.
        """
        with self._database.read() as session:
            return session.connection().execute(statements.OTHERS, {"kind": AHEAD_JOB}).first() is not None

    def claim(self, owner: str) -> Lease | None:
        """The oldest job that waits, now `owner`'s, where no other work waits or runs and no job of its kind runs.

        Jobs whose holder vanished are dead; they are not tried again.

        Raises:
            DatabaseBusy: nothing changed.
        """
        with self._database.read() as session:
            values = {"now": self._queue.now(session), "kind": AHEAD_JOB}
            if session.connection().execute(statements.PEEK_IDLE, values).first() is None:
                return None
        with self._database.write() as session:
            if self._database.dialect == "postgresql":
                # Two that look at once would each see that none runs; SQLite has one writer anyway.
                session.connection().execute(statements.ONE_AT_A_TIME)
            now = self._queue.now(session)
            values = {"now": now, "kind": AHEAD_JOB}
            for row in session.connection().execute(statements.BURY_KIND, values).mappings().all():
                reason = "its worker vanished"
                record_event(session, "job.dead", now=now, actor=_ACTOR, job_id=row["id"], reason=reason)
                count(session, Outcome.FAILED)
                log.warning("ahead.failed", extra={"job": row["id"], "code": "worker_lost"})
            claim = {
                **values,
                "owner": owner[:64],
                "lease_until": now + timedelta(seconds=self._queue.lease_s),
            }
            found = session.connection().execute(self._statements.claim_idle, claim).mappings().first()
            if found is None:
                return None
            lease = lease_of(found)
            record_event(session, "job.claimed", now=now, actor=lease.owner, job_id=lease.job_id)
        return lease

    def give_way(self, lease: Lease) -> JobState:
        """The job waits until nothing else does, or is given up where it has had to give way too often.

        Raises:
            StaleLease: the lease was lost.
            DatabaseBusy: nothing changed; the lease runs out by itself.
        """
        with self._database.write() as session:
            count(session, Outcome.GAVE_WAY)
            if lease.fence < MAX_CLAIMS:
                self._queue.release(session, lease)
                return JobState.QUEUED
            return self._queue.fail(session, lease, "made_way", "other work came again and again", retry=False)

    def failed(self, lease: Lease, code: str, detail: str, *, retry: bool, delay_s: float) -> JobState:
        """The attempt has failed: counted, and tried again a bounded number of times where that may help.

        Raises:
            StaleLease: the lease was lost.
            DatabaseBusy: nothing changed; the lease runs out by itself.
        """
        with self._database.write() as session:
            count(session, Outcome.FAILED)
            return self._queue.fail(session, lease, code, detail, retry=retry, delay_s=delay_s)


class GivesWay:
    """Whether work in progress has to end now; the database is asked at most every LOOK_S, and believed for as long."""

    def __init__(self, others: Callable[[], bool], now: Callable[[], float] = time.monotonic) -> None:
        """`others` says whether other work waits or runs; `now` is a clock, seconds."""
        self._others = others
        self._now = now
        self._looked_at: float | None = None
        self._answer = False

    def __call__(self) -> bool:
        """True from the first time on that other work was seen, or that nobody could say."""
        at = self._now()
        if not self._answer and (self._looked_at is None or at - self._looked_at >= LOOK_S):
            self._looked_at = at
            try:
                self._answer = self._others()
            except HeimdallrError as error:
                log.warning("ahead.other_work_unknown", extra={"code": error.code})
                self._answer = True
        return self._answer

"""The queue: claim a job for a while, renew, finish. A fence makes the work of a late holder harmless.

Delivery is at least once; effects are exactly once, because what a job leaves behind is committed under its fence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, cast

from sqlalchemy import CursorResult, RowMapping, TextClause
from sqlmodel import Session, col, select

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.events import record_event
from heimdallr_ray.catalog.jobs import finish_job, insert_job
from heimdallr_ray.catalog.states import JobState, StudyState
from heimdallr_ray.catalog.tables import JobRow, JobStepRow
from heimdallr_ray.catalog.transitions import locked_study, record_state, transition
from heimdallr_ray.clock import Clock
from heimdallr_ray.errors import StaleLease
from heimdallr_ray.queue import statements

ATTEMPTS_EXHAUSTED = "attempts_exhausted"
"""Reason of a study whose every attempt failed, the last one with an error that might have passed."""
WORKER_LOST_REPEATEDLY = "worker_lost_repeatedly"
"""Reason of a study during which worker after worker vanished."""
MAX_OBSOLETE_PER_CLAIM = 50
"""Jobs of studies that have moved on, set aside in one claim."""
_DETAIL_LIMIT = 2000
_QUEUE_ACTOR = "queue"


@dataclass(frozen=True)
class Lease:
    """A claimed job: what to do, and the proof of who may do it."""

    job_id: int
    kind: str
    key: str
    study_id: str | None
    epoch: int
    fence: int
    owner: str
    attempt: int
    """1 for the first; a takeover goes on with the attempt of the holder that was lost."""
    max_attempts: int
    lost: int
    """Holders that vanished before this one."""
    payload: Mapping[str, Any]
    lease_until: datetime
    """UTC, by the queue's clock."""

    @property
    def last_attempt(self) -> bool:
        """True where a failure of this attempt is final."""
        return self.attempt >= self.max_attempts


class LeaseQueue:
    """The lease table of a database. Holds no state of its own; safe to use from several threads and processes."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        lease_s: float,
        *,
        database_time: bool | None = None,
        max_lost: int = statements.MAX_LOST,
    ) -> None:
        """A queue over `database`.

        Args:
            database: Migrated.
            clock: Says what time it is on SQLite, where all workers share one host.
            lease_s: How long a claim lasts without renewal.
            database_time: Ask the server for the time, so that node clocks do not matter; None: on PostgreSQL.
            max_lost: A job that loses this many holders is dead.
        """
        self._database = database
        self._clock = clock
        self.lease_s = lease_s
        self._max_lost = max_lost
        self._statements = statements.BY_DIALECT[database.dialect]
        self._database_time = database.dialect == "postgresql" if database_time is None else database_time

    def now(self, session: Session) -> datetime:
        """The queue's time: the server's on PostgreSQL, the host's on SQLite."""
        if not self._database_time:
            return self._clock.now()
        return cast(datetime, session.connection().execute(statements.DATABASE_TIME).scalar_one())

    def enqueue(
        self,
        session: Session,
        kind: str,
        key: str,
        *,
        study_id: str | None = None,
        epoch: int = 1,
        priority: int = 3,
        max_attempts: int = 3,
        payload: dict[str, Any] | None = None,
        delay_s: float = 0.0,
    ) -> JobRow:
        """There is one job of this kind and key, in the caller's transaction; an existing one is left as it is.

        `payload` is JSON without patient data.
        """
        now = self.now(session)
        return insert_job(
            session,
            kind,
            key,
            now=now,
            study_id=study_id,
            epoch=epoch,
            priority=priority,
            max_attempts=max_attempts,
            payload=payload,
            run_at=now + timedelta(seconds=delay_s),
        )

    def claim(self, owner: str, kinds: Sequence[str]) -> Lease | None:
        """The best job that waits or whose lease ran out, now `owner`'s; None where there is none.

        Its study is running in the same transaction. Jobs that lost `max_lost` holders are buried on the way, their
        studies failed (`worker_lost_repeatedly`). A job whose study has moved on is set aside.

        Raises:
            DatabaseBusy: nothing changed.
        """
        if not kinds or not self._anything_ready(kinds):
            return None
        with self._database.write() as session:
            now = self.now(session)
            self._bury_lost(session, now)
            for _ in range(MAX_OBSOLETE_PER_CLAIM):
                lease = self._take(session, owner, kinds, now)
                if lease is None or self._start_study(session, lease, now):
                    return lease
        return None

    def renew(self, lease: Lease, timeout_s: float | None = None) -> Lease:
        """The lease lasts `lease_s` from now on.

        Args:
            lease: As claimed or last renewed.
            timeout_s: How long to wait for the database's lock; None for its own bound.

        Raises:
            StaleLease: somebody else claimed the job, or it has ended.
            DatabaseBusy: not renewed; may be tried again while the lease lasts.
        """
        with self._database.write(timeout_s) as session:
            lease_until = self.now(session) + timedelta(seconds=self.lease_s)
            values = {"job_id": lease.job_id, "fence": lease.fence, "lease_until": lease_until}
            self._fenced(session, statements.RENEW, lease, values)
        return replace(lease, lease_until=lease_until)

    def finish(self, session: Session, lease: Lease) -> None:
        """The job is done, in the caller's transaction; its study is left as it is.

        Raises:
            StaleLease: somebody else claimed the job, or it has ended; the caller's work must be thrown away.
        """
        finish_job(session, lease, self.now(session))

    def fail(
        self, session: Session, lease: Lease, code: str, detail: str, retry: bool, delay_s: float = 0.0
    ) -> JobState:
        """The attempt has failed: the job waits for the next one, or is dead and its study failed.

        The study's reason code is `code`, or `attempts_exhausted` where another attempt could have helped but none is
        left; the job keeps `code`.

        Args:
            session: The caller's transaction.
            lease: The attempt.
            code: Stable error code, shown with the study.
            detail: For a person; no patient data.
            retry: False where another attempt cannot help.
            delay_s: Least wait before the next attempt.

        Raises:
            StaleLease: somebody else claimed the job, or it has ended.
        """
        now = self.now(session)
        again = retry and not lease.last_attempt
        values: dict[str, Any] = {
            "job_id": lease.job_id,
            "fence": lease.fence,
            "code": code[:64],
            "detail": detail[:_DETAIL_LIMIT],
        }
        if again:
            values["run_at"] = now + timedelta(seconds=delay_s)
            self._fenced(session, statements.RETRY, lease, values)
        else:
            self._fenced(session, statements.KILL, lease, values | {"now": now})
        state = JobState.QUEUED if again else JobState.DEAD
        self._job_event(session, "job.failed", lease, now, new=state.value, reason=f"{code}: {detail}")
        if lease.study_id is not None:
            exhausted = retry and not again
            what = f"{code}: {detail}" if exhausted else detail
            # Where no other attempt follows, their number says nothing of the reason.
            reason = f"{what} (attempt {lease.attempt} of {lease.max_attempts})" if retry else detail
            reason_code = ATTEMPTS_EXHAUSTED if exhausted else code[:64]
            study_state = StudyState.QUEUED if again else StudyState.FAILED
            self._move_study(session, lease.study_id, lease.epoch, study_state, now, lease.owner, reason_code, reason)
        return state

    def release(self, session: Session, lease: Lease) -> None:
        """The job waits again as if it had not been claimed: for an orderly shutdown, costs no attempt.

        Raises:
            StaleLease: somebody else claimed the job, or it has ended.
        """
        now = self.now(session)
        self._fenced(session, statements.RELEASE, lease, {"job_id": lease.job_id, "fence": lease.fence})
        self._job_event(session, "job.released", lease, now)
        if lease.study_id is not None:
            self._move_study(session, lease.study_id, lease.epoch, StudyState.QUEUED, now, lease.owner)

    def release_dead_owners(self, session: Session, is_dead: Callable[[str], bool], *, orderly: bool = False) -> int:
        """Leases of holders that are known to be gone need not run out first; returns how many there were.

        Args:
            session: The caller's transaction.
            is_dead: Of an owner's name: True only where its process is certainly gone; for owners on other hosts False.
            orderly: The holders were stopped on purpose: the jobs wait as if they had not been claimed. Otherwise the
                leases expire now, each job has lost a holder, and a holder that lives after all goes on by renewing.
        """
        now = self.now(session)
        running = select(JobRow).where(
            JobRow.state == JobState.RUNNING.value, col(JobRow.owner).is_not(None), col(JobRow.lease_until) > now
        )
        ended = 0
        for row in session.exec(running.order_by(col(JobRow.id)), execution_options={"populate_existing": True}).all():
            lease = lease_of(row.model_dump())
            if not is_dead(lease.owner):
                continue
            try:
                if orderly:
                    self.release(session, lease)
                else:
                    values = {"job_id": lease.job_id, "fence": lease.fence, "now": now}
                    self._fenced(session, statements.EXPIRE, lease, values)
                    self._job_event(session, "job.expired", lease, now, reason="its worker is gone")
            except StaleLease:
                continue
            ended += 1
        return ended

    def hold(self, session: Session, lease: Lease) -> None:
        """Nobody can claim the job until the caller's transaction ends: what it writes is written under the fence.

        Raises:
            StaleLease: somebody else claimed the job, or it has ended.
        """
        session.flush()
        values = {"job_id": lease.job_id, "fence": lease.fence}
        if session.connection().execute(self._statements.hold, values).first() is None:
            raise _stale(lease)

    def step_output(self, session: Session, lease: Lease, step: str, input_hash: str) -> dict[str, Any] | None:
        """What this step of the job gave for this input, in whichever attempt; None where it has not finished."""
        statement = select(JobStepRow).where(
            JobStepRow.job_id == lease.job_id, JobStepRow.step == step, JobStepRow.input_hash == input_hash
        )
        row = session.exec(statement).one_or_none()
        return None if row is None else row.output

    def record_step(
        self, session: Session, lease: Lease, step: str, input_hash: str, output: dict[str, Any], seconds: float
    ) -> None:
        """The step's output is recorded, in the caller's transaction; the first record for an input stands.

        Raises:
            StaleLease: somebody else claimed the job, or it has ended.
        """
        self.hold(session, lease)
        values = {
            "job_id": lease.job_id,
            "step": step,
            "input_hash": input_hash,
            "output": output,
            "fence": lease.fence,
            "attempt": lease.attempt,
            "seconds": seconds,
            "now": self.now(session),
        }
        session.connection().execute(statements.RECORD_STEP, values)

    def _anything_ready(self, kinds: Sequence[str]) -> bool:
        with self._database.read() as session:
            values = {"now": self.now(session), "kinds": list(kinds), "max_lost": self._max_lost}
            return session.connection().execute(statements.PEEK, values).first() is not None

    def _take(self, session: Session, owner: str, kinds: Sequence[str], now: datetime) -> Lease | None:
        values: dict[str, Any] = {
            "owner": owner[:64],
            "kinds": list(kinds),
            "now": now,
            "lease_until": now + timedelta(seconds=self.lease_s),
            "max_lost": self._max_lost,
        }
        for level in range(1, statements.MAX_LEVELS + 1):
            values[f"aged_{level}"] = now - timedelta(seconds=level * statements.AGEING_STEP_S)
        session.flush()
        row = session.connection().execute(self._statements.claim, values).mappings().first()
        return None if row is None else lease_of(row)

    def _start_study(self, session: Session, lease: Lease, now: datetime) -> bool:
        """The lease's study is running; False where the study has moved on and the job was set aside."""
        if lease.study_id is not None:
            study = locked_study(session, lease.study_id)
            state = StudyState(study.state)
            if study.epoch != lease.epoch or state not in (StudyState.QUEUED, StudyState.RUNNING):
                self._set_aside(session, lease, now)
                return False
            if state is StudyState.QUEUED:
                transition(session, study.id, StudyState.RUNNING, now=now, actor=lease.owner)
            else:
                study.step = None
                session.add(study)
                record_state(session, study, state, now=now, actor=lease.owner)
        self._job_event(session, "job.claimed", lease, now)
        return True

    def _set_aside(self, session: Session, lease: Lease, now: datetime) -> None:
        job = session.get_one(JobRow, lease.job_id, populate_existing=True)
        job.state = JobState.CANCELLED.value
        job.owner = None
        job.lease_until = None
        job.finished_at = now
        session.add(job)
        session.flush()
        self._job_event(session, "job.cancelled", lease, now, reason="the study has moved on")

    def _bury_lost(self, session: Session, now: datetime) -> None:
        values = {"now": now, "max_lost": self._max_lost}
        for row in session.connection().execute(statements.BURY, values).mappings().all():
            record_event(
                session,
                "job.dead",
                now=now,
                actor=_QUEUE_ACTOR,
                study_id=row["study_id"],
                job_id=row["id"],
                new=JobState.DEAD.value,
                reason=WORKER_LOST_REPEATEDLY,
                payload={"fence": row["fence"], "attempt": row["attempt"], "lost": row["lost"]},
            )
            if row["study_id"] is not None:
                reason = f"{row['lost']} workers were lost during this study"
                self._move_study(
                    session,
                    row["study_id"],
                    row["epoch"],
                    StudyState.FAILED,
                    now,
                    _QUEUE_ACTOR,
                    WORKER_LOST_REPEATEDLY,
                    reason,
                )

    def _move_study(
        self,
        session: Session,
        study_id: str,
        epoch: int,
        state: StudyState,
        now: datetime,
        actor: str,
        reason_code: str | None = None,
        reason: str | None = None,
    ) -> None:
        """The study follows its job, unless it has moved on to another epoch or state meanwhile."""
        study = locked_study(session, study_id)
        if study.epoch == epoch and study.state == StudyState.RUNNING.value:
            transition(session, study_id, state, now=now, actor=actor, reason_code=reason_code, reason=reason)

    def _fenced(self, session: Session, statement: TextClause, lease: Lease, values: Mapping[str, Any]) -> None:
        session.flush()
        changed = cast("CursorResult[Any]", session.connection().execute(statement, dict(values))).rowcount
        if changed != 1:
            raise _stale(lease)

    def _job_event(
        self,
        session: Session,
        kind: str,
        lease: Lease,
        now: datetime,
        *,
        new: str | None = None,
        reason: str | None = None,
    ) -> None:
        record_event(
            session,
            kind,
            now=now,
            actor=lease.owner,
            study_id=lease.study_id,
            job_id=lease.job_id,
            new=new,
            reason=reason,
            payload={"fence": lease.fence, "attempt": lease.attempt, "lost": lease.lost},
        )


def _stale(lease: Lease) -> StaleLease:
    return StaleLease(f"job {lease.job_id}: fence {lease.fence} does not hold it any more")


def lease_of(row: RowMapping | Mapping[str, Any]) -> Lease:
    """The claim that a row of `job` tells of."""
    return Lease(
        job_id=row["id"],
        kind=row["kind"],
        key=row["key"],
        study_id=row["study_id"],
        epoch=row["epoch"],
        fence=row["fence"],
        owner=row["owner"],
        attempt=row["attempt"],
        max_attempts=row["max_attempts"],
        lost=row["lost"],
        payload=row["payload"],
        lease_until=row["lease_until"],
    )

"""Closing an epoch of a study: manifest, state, reason and its one job together; what must be known before it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlmodel import Session, col, func, select

from heimdallr_ray.catalog.aliases import standing_uid
from heimdallr_ray.catalog.associations import last_sender
from heimdallr_ray.catalog.choosing import MAX_NAME, MAX_REASON, job_payload, standing_choice
from heimdallr_ray.catalog.completeness import CloseCode, SeriesSeen, Verdict, broken_words
from heimdallr_ray.catalog.jobs import STUDY_JOB, insert_job
from heimdallr_ray.catalog.priority import ordered_class, urgency_class
from heimdallr_ray.catalog.recording import OPEN
from heimdallr_ray.catalog.states import Door, How, StudyState
from heimdallr_ray.catalog.tables import InstanceRow, SeriesRow, StudyRow
from heimdallr_ray.catalog.transitions import lock_study_uid, locked_study, transition
from heimdallr_ray.errors import BadIdentifier, NotFound, NotOpen

MAX_PER_CALL = 50
"""Studies changed in one transaction; the rest wait for the next scan."""
MAX_WATCHED = 5000
"""Open studies that one scan looks at; the next one goes on behind them."""
PLAN_SLACK_S = 2.0
"""A time of closing that moves by less is not written anew."""

STILL_OPEN = "open"
"""Of a transfer that nobody had ended when its study was closed; else the value of `How` it ended."""

Version = tuple[int, int, datetime]


@dataclass(frozen=True)
class OpenStudy:
    """One study that is being received, as it was when it was read."""

    id: str
    study_uid: str
    state: StudyState
    epoch: int
    n_images: int
    n_expected: int | None
    last_received_at: datetime
    epoch_opened_at: datetime | None
    closes_at: datetime | None
    close_code: str | None
    door: str
    calling_ae: str | None

    @property
    def version(self) -> Version:
        """Another one as soon as an image has come."""
        return self.epoch, self.n_images, self.last_received_at


@dataclass(frozen=True)
class Sender:
    """Who sends to a study, or was the last to."""

    calling_ae: str | None
    address: str | None
    door: str | None
    open: bool
    ended: How | None
    """None while it is open, and where nothing is known of how it ended."""
    ended_at: datetime | None


@dataclass(frozen=True)
class Change:
    """What is to be done with one study that is still as `study` says.

    Attributes:
        verdict: why and when it will be closed, or why it is held open.
        close: True: now.
        fail: True: and it is not analysed.
        settling: True: it is shown as settling where it was receiving.
        epoch_opened_at: when the first image of its epoch came.
    """

    study: OpenStudy
    verdict: Verdict
    epoch_opened_at: datetime
    close: bool = False
    fail: bool = False
    settling: bool = False

    def is_needed(self, now: datetime) -> bool:
        """True where the study's row does not say so already."""
        before = self.study
        return (
            self.close
            or (self.settling and before.state is StudyState.RECEIVING)
            or before.epoch_opened_at is None
            or self._replans(before.closes_at, before.close_code, now)
        )

    def closes_at(self, now: datetime) -> datetime | None:
        """When the study will be closed, by the wall clock as it stands."""
        return None if math.isinf(self.verdict.in_s) else now + timedelta(seconds=max(0.0, self.verdict.in_s))

    def _replans(self, at: datetime | None, code: str | None, now: datetime) -> bool:
        planned = self.closes_at(now)
        if code != self.verdict.code.value or planned is None or at is None:
            return code != self.verdict.code.value or planned != at
        return abs((planned - at).total_seconds()) > PLAN_SLACK_S


def open_studies(session: Session, after_id: str = "", limit: int = MAX_WATCHED) -> list[OpenStudy]:
    """The studies that are being received, at most `limit`, by id.

    Who goes on behind the last one of each answer, until one has fewer than `limit`, has seen every study that was open
    all the time, whoever holds how many of them open: no image changes the order, and no sender chooses an id.

    Args:
        session: Of `Database.read()`.
        after_id: only studies behind this one; empty: from the beginning.
        limit: studies.
    """
    found: list[OpenStudy] = []
    # State by state: so the index gives them in their order, and no more of them than are wanted are read.
    for state in sorted(OPEN):
        statement = (
            select(StudyRow)
            .where(StudyRow.state == state.value, col(StudyRow.id) > after_id)
            .order_by(col(StudyRow.id))
            .limit(limit)
        )
        found.extend(_open_study(row) for row in session.exec(statement).all())
    return sorted(found, key=lambda study: study.id)[:limit]


def sender_of(session: Session, study: OpenStudy) -> Sender:
    """Who has this epoch of the study open, or was the last to end.

    An upload or STOW request without a row of its own has ended: its objects become rows once it is whole.
    """
    row = last_sender(session, study.id, study.epoch)
    if row is not None:
        ended = None if row.how is None else How(row.how)
        calling_ae, door = row.calling_ae or study.calling_ae, row.door or study.door
        return Sender(calling_ae, row.address, door, row.closed_at is None, ended, row.closed_at)
    of_epoch = select(InstanceRow).where(InstanceRow.study_id == study.id, InstanceRow.epoch == study.epoch).limit(1)
    one = session.exec(of_epoch).one_or_none()
    if one is None:
        return Sender(study.calling_ae, None, study.door, open=False, ended=None, ended_at=None)
    ended = None if one.door == Door.DICOM.value else How.RELEASED
    return Sender(one.calling_ae, one.address, one.door, open=False, ended=ended, ended_at=None)


def series_seen(session: Session, study_id: str) -> tuple[SeriesSeen, ...]:
    """The study's series as far as they have come."""
    rows = session.exec(select(SeriesRow).where(SeriesRow.study_id == study_id)).all()
    return tuple(SeriesSeen(row.modality or "", row.series_description or "", row.n_instances) for row in rows)


def epoch_opened_at(session: Session, study: OpenStudy) -> datetime:
    """When the first image of the study's present epoch came."""
    first = select(func.min(InstanceRow.received_at)).where(
        InstanceRow.study_id == study.id, InstanceRow.epoch == study.epoch
    )
    return session.exec(first).one() or study.last_received_at


def apply_changes(
    session: Session, changes: Iterable[Change], *, now: datetime, max_attempts: int, actor: str
) -> list[str]:
    """What was decided is done, for the first MAX_PER_CALL studies, of these to which nothing has come meanwhile.

    Those that are to be closed come before the others, else in the order of `changes`.

    Manifest, state, reason, history and job of a study change together; each epoch is closed once.

    Returns:
        The ids of the studies that were closed, to be analysed or not.
    """
    needed = [change for change in changes if change.is_needed(now)]
    # What is due first; then in the order in which everybody locks studies.
    first = sorted(needed, key=lambda change: not change.close)[:MAX_PER_CALL]
    closed: list[str] = []
    for change in sorted(first, key=lambda one: one.study.study_uid):
        lock_study_uid(session, change.study.study_uid)
        row = locked_study(session, change.study.id)
        if StudyState(row.state) not in OPEN or _open_study(row).version != change.study.version:
            continue
        row.epoch_opened_at = change.epoch_opened_at
        if change.close and not _reopened(session, change):
            _end(session, row, change.verdict, fail=change.fail, now=now, max_attempts=max_attempts, actor=actor)
            closed.append(row.id)
            continue
        _plan(row, change, now)
        if change.settling and row.state == StudyState.RECEIVING.value:
            row = transition(session, row.id, StudyState.SETTLING, now=now, actor=actor)
        session.add(row)
    return closed


def close_study(
    session: Session, study_id: str, verdict: Verdict, *, now: datetime, max_attempts: int, actor: str
) -> StudyRow:
    """The study's present epoch is closed: manifest, state `queued`, why, and its one job, in the caller's transaction.

    Raises:
        IllegalTransition: the study is not receiving or settling.
        NotFound: there is no such study.
    """
    row = locked_study(session, study_id)
    return _end(session, row, verdict, fail=False, now=now, max_attempts=max_attempts, actor=actor)


def complete_study(
    session: Session, study_uid: str, *, reason: str, by: str, now: datetime, max_attempts: int, actor: str
) -> StudyRow:
    """A person says that the study is complete: it is closed now, whoever may still be sending to it.

    Args:
        session: Of `Database.write()`.
        study_uid: StudyInstanceUID.
        reason: why, in the person's words; not blank.
        by: the person's name; not blank.
        now: UTC.
        max_attempts: Of the job.
        actor: Who asked, for the history.

    Raises:
        NotFound: there is no such study.
        NotOpen: it is closed already; says what it is.
        BadIdentifier: the reason or the name is blank or too long.
    """
    why, who = reason.strip(), by.strip()
    if not why or len(why) > MAX_REASON or not who or len(who) > MAX_NAME:
        raise BadIdentifier(f"a reason of 1 to {MAX_REASON} letters and a name of 1 to {MAX_NAME} are needed")
    study_uid = standing_uid(session, study_uid)
    lock_study_uid(session, study_uid)
    found = session.exec(select(StudyRow).where(StudyRow.study_uid == study_uid)).one_or_none()
    if found is None:
        raise NotFound("there is no such study")
    row = locked_study(session, found.id)
    if StudyState(row.state) not in OPEN:
        raise NotOpen(f"the study is {row.state}; only one that is receiving or settling can be completed")
    last = sender_of(session, _open_study(row))
    left = broken_words(last.door, last.ended, still_open=last.open)
    words = f"{who} said that it is complete: {why}" + (f" ({left})" if left else "")
    return _end(
        session,
        row,
        Verdict(CloseCode.OPERATOR, 0.0, words),
        fail=False,
        now=now,
        max_attempts=max_attempts,
        actor=actor,
    )


def manifest_sha256(session: Session, study_id: str) -> str:
    """Digest of the study's content: its objects' digests, sorted, one per line."""
    statement = select(InstanceRow.blob_sha256).where(InstanceRow.study_id == study_id)
    return hashlib.sha256("\n".join(sorted(session.exec(statement).all())).encode()).hexdigest()


def _open_study(row: StudyRow) -> OpenStudy:
    return OpenStudy(
        id=row.id,
        study_uid=row.study_uid,
        state=StudyState(row.state),
        epoch=row.epoch,
        n_images=row.n_instances,
        n_expected=row.n_expected,
        last_received_at=row.last_received_at,
        epoch_opened_at=row.epoch_opened_at,
        closes_at=row.closes_at,
        close_code=row.close_code,
        door=row.door,
        calling_ae=row.calling_ae,
    )


def _reopened(session: Session, change: Change) -> bool:
    """True where an association that is open now has sent to it since it was looked at; only the maximum minds not."""
    if change.verdict.code is CloseCode.HARD_MAXIMUM:
        return False
    row = last_sender(session, change.study.id, change.study.epoch)
    return row is not None and row.closed_at is None and row.door == Door.DICOM.value


def _plan(row: StudyRow, change: Change, now: datetime) -> None:
    row.closes_at = change.closes_at(now)
    row.close_code, row.close_reason = change.verdict.code.value, change.verdict.reason


def _end(
    session: Session, row: StudyRow, verdict: Verdict, *, fail: bool, now: datetime, max_attempts: int, actor: str
) -> StudyRow:
    state = StudyState.FAILED if fail else StudyState.QUEUED
    last = sender_of(session, _open_study(row))
    study = transition(
        session, row.id, state, now=now, actor=actor, reason_code=verdict.code.value, reason=verdict.reason
    )
    study.manifest_sha256 = manifest_sha256(session, study.id)
    study.closed_at = now
    study.closes_at = study.epoch_opened_at = None
    study.close_code, study.close_reason = verdict.code.value, verdict.reason
    study.last_transfer = STILL_OPEN if last.open else None if last.ended is None else last.ended.value
    session.add(study)
    if fail:
        return study
    # The history keeps the reason; the study's own is for what has no result.
    study.reason_code = study.reason = None
    insert_job(
        session,
        STUDY_JOB,
        f"{study.id}:{study.epoch}",
        now=now,
        study_id=study.id,
        epoch=study.epoch,
        # A study that was urgent before its late images came is not queued behind routine ones.
        priority=min(ordered_class(study.ordered_priority), urgency_class(study.urgency)),
        max_attempts=max_attempts,
        payload=job_payload(study.manifest_sha256, standing_choice(session, study.id)),
    )
    return study

"""When a study is complete: idle and with no open association that has sent to it. Then it gets its job."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from datetime import datetime, timedelta

from sqlmodel import Session, col, select

from heimdallr_ray.catalog.choosing import job_payload, standing_choice
from heimdallr_ray.catalog.jobs import STUDY_JOB, insert_job
from heimdallr_ray.catalog.priority import ordered_class, urgency_class
from heimdallr_ray.catalog.recording import OPEN
from heimdallr_ray.catalog.states import StudyState
from heimdallr_ray.catalog.tables import InstanceRow, StudyRow
from heimdallr_ray.catalog.transitions import lock_study_uid, locked_study, transition

QUIET_S = 2.0
"""After this long without an image a study is shown as settling."""
MAX_PER_CALL = 50
"""Studies moved in one transaction; the rest wait for the next scan."""


def close_idle_studies(
    session: Session,
    now: datetime,
    idle_s: float,
    busy_study_uids: Collection[str],
    max_attempts: int,
    actor: str,
) -> list[str]:
    """Idle studies are queued, quiet ones settle; returns the ids of the queued ones.

    A study is idle when its last image is older than `idle_s` and no open association has sent to it
    (`busy_study_uids`). Its manifest, state, history and job row change together; each epoch is closed once.
    """
    busy = frozenset(str(uid) for uid in busy_study_uids)
    closed: list[str] = []
    for study_uid, study_id in _quiet(session, now - timedelta(seconds=min(QUIET_S, idle_s)), busy):
        lock_study_uid(session, study_uid)
        study = locked_study(session, study_id)
        quiet_s = (now - study.last_received_at).total_seconds()
        if StudyState(study.state) not in OPEN:
            continue
        if quiet_s >= idle_s:
            close_study(session, study_id, now=now, max_attempts=max_attempts, actor=actor)
            closed.append(study_id)
        elif study.state == StudyState.RECEIVING.value and quiet_s >= QUIET_S:
            transition(session, study_id, StudyState.SETTLING, now=now, actor=actor)
    return closed


def close_study(session: Session, study_id: str, *, now: datetime, max_attempts: int, actor: str) -> None:
    """The study's present epoch is closed: manifest, state `queued` and its one job, in the caller's transaction.

    Raises:
        IllegalTransition: the study is not receiving or settling.
        NotFound: there is no such study.
    """
    study = transition(session, study_id, StudyState.QUEUED, now=now, actor=actor)
    study.manifest_sha256 = manifest_sha256(session, study_id)
    study.closed_at = now
    session.add(study)
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


def manifest_sha256(session: Session, study_id: str) -> str:
    """Digest of the study's content: its objects' digests, sorted, one per line."""
    statement = select(InstanceRow.blob_sha256).where(InstanceRow.study_id == study_id)
    return hashlib.sha256("\n".join(sorted(session.exec(statement).all())).encode()).hexdigest()


def _quiet(session: Session, before: datetime, busy: frozenset[str]) -> list[tuple[str, str]]:
    # Oldest first: a crowd of quiet studies cannot keep an idle one waiting.
    statement = (
        select(StudyRow.study_uid, StudyRow.id)
        .where(col(StudyRow.state).in_([state.value for state in sorted(OPEN)]), StudyRow.last_received_at <= before)
        .order_by(col(StudyRow.last_received_at), col(StudyRow.study_uid))
    )
    rows = session.exec(statement).all()
    return sorted([row for row in rows if row[0] not in busy][:MAX_PER_CALL])

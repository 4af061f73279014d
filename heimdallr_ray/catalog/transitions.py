"""Changes of a study's state, step and urgency: each checked, each leaving a row in the history."""

from __future__ import annotations

import hashlib
from datetime import datetime

from sqlalchemy import text
from sqlmodel import Session, select

from heimdallr_ray.catalog.events import record_event
from heimdallr_ray.catalog.states import StudyState, Urgency, require_transition
from heimdallr_ray.catalog.tables import StudyRow
from heimdallr_ray.errors import NotFound

_REASON_LIMIT = 2000
STEP_LIMIT = 32


def lock_study_uid(session: Session, study_uid: str) -> None:
    """Nobody else records or closes this study until the transaction ends.

    SQLite has one writer anyway. On PostgreSQL the lock also covers a study that has no row yet.
    """
    if session.get_bind().dialect.name == "postgresql":
        key = int.from_bytes(hashlib.sha256(study_uid.encode()).digest()[:8], "big", signed=True)
        session.connection().execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})


def locked_study(session: Session, study_id: str) -> StudyRow:
    """The study as it is now, held until the transaction ends.

    Raises:
        NotFound: there is no such study.
    """
    statement = select(StudyRow).where(StudyRow.id == study_id).with_for_update()
    study = session.exec(statement, execution_options={"populate_existing": True}).one_or_none()
    if study is None:
        raise NotFound("no such study")
    return study


def transition(
    session: Session,
    study_id: str,
    new_state: StudyState,
    *,
    now: datetime,
    actor: str,
    reason_code: str | None = None,
    reason: str | None = None,
    step: str | None = None,
) -> StudyRow:
    """The study is in `new_state` with this reason and step, and the history says who did it.

    Raises:
        IllegalTransition: `new_state` cannot follow the present one.
        NotFound: there is no such study.
    """
    study = locked_study(session, study_id)
    old = StudyState(study.state)
    require_transition(old, new_state)
    study.state = new_state.value
    study.reason_code = reason_code
    study.reason = None if reason is None else reason[:_REASON_LIMIT]
    study.step = None if step is None else step[:STEP_LIMIT]
    study.done_at = now if new_state is StudyState.DONE else None
    session.add(study)
    record_state(session, study, old, now=now, actor=actor)
    return study


def record_state(session: Session, study: StudyRow, old: StudyState | None, *, now: datetime, actor: str) -> None:
    """The history will say that `study` went from `old` to the state it has now."""
    record_event(
        session,
        "study.state",
        now=now,
        actor=actor,
        study_id=study.id,
        old=None if old is None else old.value,
        new=study.state,
        reason=study.reason,
        payload={"epoch": study.epoch, "reason_code": study.reason_code, "step": study.step},
    )


def set_step(session: Session, study_id: str, step: str | None, now: datetime, actor: str = "worker") -> None:
    """The study shows `step` as the running one; nothing is written where it already does.

    Raises:
        NotFound: there is no such study.
    """
    study = locked_study(session, study_id)
    bounded = None if step is None else step[:STEP_LIMIT]
    if study.step == bounded:
        return
    record_event(session, "study.step", now=now, actor=actor, study_id=study_id, old=study.step, new=bounded)
    study.step = bounded
    session.add(study)


def bounded_reason(reason: str | None) -> str | None:
    """The reason as it is kept: a sentence for a person, not a document."""
    return None if reason is None else reason[:_REASON_LIMIT]


def set_urgency(
    session: Session, study_id: str, urgency: Urgency, reason: str | None, *, now: datetime, actor: str
) -> Urgency:
    """The study is at least as urgent as `urgency`; returns the class that stands.

    A machine raises and never lowers (docs/architecture.md, decision 11): a less urgent class is recorded in the
    history only.

    Raises:
        NotFound: there is no such study.
    """
    study = locked_study(session, study_id)
    old = None if study.urgency is None else Urgency(study.urgency)
    stands = urgency if old is None else min(old, urgency, key=lambda item: item.value)
    if stands is urgency:
        study.urgency = stands.value
        study.urgency_reason = bounded_reason(reason)
        session.add(study)
    record_event(
        session,
        "study.urgency",
        now=now,
        actor=actor,
        study_id=study_id,
        old=None if old is None else old.value,
        new=stands.value,
        reason=reason,
        payload={"proposed": urgency.value},
    )
    return stands

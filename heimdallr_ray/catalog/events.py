"""The event table: written last in a transaction, so that ids grow in the order of commits.

A reader that remembers the last id it has seen would miss an event whose id was given before, but committed after,
that one. On PostgreSQL the ids are therefore taken under an advisory lock held until the commit; SQLite has one writer.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, cast

from sqlalchemy import text
from sqlmodel import Session

from heimdallr_ray.catalog.tables import EventRow

PENDING_EVENTS = "heimdallr_pending_events"
_EVENT_ORDER_LOCK = 0x4865_696D_6401
_REASON_LIMIT = 2000


def record_event(
    session: Session,
    kind: str,
    *,
    now: datetime,
    actor: str,
    study_id: str | None = None,
    job_id: int | None = None,
    old: str | None = None,
    new: str | None = None,
    reason: str | None = None,
    payload: dict[str, Any] | None = None,
) -> None:
    """The event will be committed with the session's transaction. `payload` is JSON without patient data."""
    row = EventRow(
        at=now,
        kind=kind,
        study_id=study_id,
        job_id=job_id,
        actor=actor[:64],
        old=old,
        new=new,
        reason=None if reason is None else reason[:_REASON_LIMIT],
        payload=payload or {},
    )
    pending = cast("list[EventRow] | None", session.info.get(PENDING_EVENTS))
    if pending is None:
        session.add(row)
    else:
        pending.append(row)


def flush_events(session: Session) -> None:
    """All recorded events have ids; nothing but the commit may follow."""
    session.flush()
    pending = cast("list[EventRow]", session.info.get(PENDING_EVENTS, []))
    if not pending:
        return
    if session.get_bind().dialect.name == "postgresql":
        session.connection().execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _EVENT_ORDER_LOCK})
    session.add_all(pending)
    session.flush()
    session.info[PENDING_EVENTS] = []

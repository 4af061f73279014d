"""What the audit chain says, newest first, for people who look into it."""

from __future__ import annotations

from collections.abc import Sequence

from sqlmodel import Session, col, select

from heimdallr_ray.catalog.tables import AuditHeadRow, AuditRow

MAX_LISTED = 10_000


def recent(
    session: Session, limit: int, *, actor: str | None = None, study_id: str | None = None, action: str | None = None
) -> Sequence[AuditRow]:
    """The last `limit` entries that fit, newest first.

    Args:
        session: Of `Database.read()`.
        limit: At most MAX_LISTED.
        actor: Name or address of who did it.
        study_id: `study.id`.
        action: One of `Action`, or its beginning (`upload.`).
    """
    statement = select(AuditRow).order_by(col(AuditRow.id).desc()).limit(max(1, min(limit, MAX_LISTED)))
    if actor is not None:
        statement = statement.where((AuditRow.actor_name == actor) | (AuditRow.actor_address == actor))
    if study_id is not None:
        statement = statement.where(AuditRow.study_id == study_id)
    if action is not None:
        statement = statement.where(col(AuditRow.action).startswith(action, autoescape=True))
    return session.exec(statement).all()


def head(session: Session) -> AuditHeadRow | None:
    """How long the chain is, and how it ends; None before the first entry."""
    return session.exec(select(AuditHeadRow)).first()


def mac_at(session: Session, entry: int) -> str | None:
    """The MAC of one entry; None where it is not there."""
    return session.exec(select(AuditRow.mac).where(AuditRow.id == entry)).first()

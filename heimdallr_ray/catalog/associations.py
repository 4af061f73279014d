"""Who sent, when, and how it ended: one row for each intake, that is a DICOM association, an upload or a STOW request.

A door tells of the opening and of the end, each as often and in whichever order it likes: a listener that dies tells of
no end, and what a spool replays may come before the row. A row says what is known, and later words complete it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from sqlalchemy import Table, case
from sqlalchemy import select as sql_select
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, col, func, or_, select, update

from heimdallr_ray.catalog.states import Door, How
from heimdallr_ray.catalog.tables import AssociationRow, InstanceRow, ResendRow

AE_LIMIT = 16
TEXT_LIMIT = 64
REASON_LIMIT = 500
_CHUNK = 500
"""Values per IN list: below SQLite's 999 of old builds."""
_UNSEEN = "nobody saw how it ended"


@dataclass(frozen=True)
class AssociationOpened:
    """A door has begun to take something in. `id` is what the instances' `association_id` holds."""

    id: str
    door: Door
    calling_ae: str | None
    called_ae: str | None
    address: str | None
    opened_at: datetime
    implementation: str = ""
    """Implementation version name or class UID of the peer; the user agent of an HTTP client."""
    actor_kind: str | None = None
    """`ActorKind` of who stands behind an HTTP request, and that one's name."""
    actor_name: str | None = None


@dataclass(frozen=True)
class AssociationClosed:
    """It has ended. Counts are of the whole association; duplicates are counted where they are found, with the rows."""

    id: str
    closed_at: datetime
    how: How
    stored: int = 0
    """Objects that were answered as stored, new or known."""
    refused: int = 0
    n_bytes: int = 0
    reason: str = ""
    """Why, where it did not end as it should: for an operator, without patient data."""


@dataclass(frozen=True)
class LastSeen:
    """What is known of one sender at one door: calling AE and address as sent, empty where it gave none."""

    calling_ae: str
    address: str
    door: str
    opened_at: datetime | None
    """Of its newest association."""
    stored_at: datetime | None
    """End of its newest association that brought an image, new or known."""
    open: int
    """Associations without an end."""
    associations: int
    unclean: int
    """Of these, aborted or lost."""
    stored: int
    """Objects that were answered as stored, by associations whose end was seen."""
    duplicates: int
    """Of these, so many were in the catalog before."""
    refused: int
    """Objects that were refused one by one."""
    n_bytes: int
    """Data set bytes of the stored ones."""


def record_opened(session: Session, items: Sequence[AssociationOpened]) -> None:
    """Each association has its row with who sends; what is known of its end stays. Doing it twice changes nothing."""
    if not items:
        return
    rows = [
        {
            "id": bounded(item.id, TEXT_LIMIT) or "",
            "door": item.door.value,
            "calling_ae": bounded(item.calling_ae, AE_LIMIT),
            "called_ae": bounded(item.called_ae, AE_LIMIT),
            "address": bounded(item.address, TEXT_LIMIT),
            "implementation": bounded(item.implementation, TEXT_LIMIT),
            "actor_kind": item.actor_kind,
            "actor_name": bounded(item.actor_name, TEXT_LIMIT),
            "opened_at": item.opened_at,
        }
        for item in items
    ]
    told = "door", "calling_ae", "called_ae", "address", "implementation", "actor_kind", "actor_name", "opened_at"
    _upsert(session, rows, told)


def record_closed(session: Session, items: Sequence[AssociationClosed]) -> None:
    """Each association has its row with how it ended. The first end that a door tells of stands; `lost` gives way."""
    if not items:
        return
    rows = [
        {
            "id": bounded(item.id, TEXT_LIMIT) or "",
            "closed_at": item.closed_at,
            "how": item.how.value,
            "reason": bounded(item.reason, REASON_LIMIT),
            "stored": max(0, item.stored),
            "refused": max(0, item.refused),
            "n_bytes": max(0, item.n_bytes),
        }
        for item in items
    ]
    names = ("closed_at", "how", "reason", "stored", "refused", "n_bytes")
    _upsert(session, rows, names, only_open=True)


def count_duplicates(session: Session, found: Mapping[str, int]) -> None:
    """The rows of these associations count so many more objects that the catalog had; one that has no row is left out.

    An association may have ended before its last object is a row, so this is counted with the rows and not by the door.
    """
    # Sorted: two recorders lock the rows in the same order.
    for id_ in sorted(found):
        session.connection().execute(
            update(AssociationRow)
            .where(col(AssociationRow.id) == id_)
            .values(duplicates=col(AssociationRow.duplicates) + found[id_])
        )


def mark_lost(
    session: Session,
    alive_ids: Collection[str],
    now: datetime,
    *,
    doors: Collection[Door] = (Door.DICOM,),
    opened_before: datetime | None = None,
) -> int:
    """Associations of `doors` that have no end and are not among `alive_ids` are lost; returns how many there were.

    Args:
        session: Of `Database.write()`.
        alive_ids: those that some living process has open.
        now: UTC; the end of what nobody saw end.
        doors: whose associations the caller knows all of.
        opened_before: only those that are older; None: all.
    """
    statement = select(AssociationRow.id).where(
        col(AssociationRow.closed_at).is_(None),
        col(AssociationRow.door).in_([door.value for door in doors]),
    )
    if opened_before is not None:
        statement = statement.where(col(AssociationRow.opened_at) < opened_before)
    alive = frozenset(alive_ids)
    lost = [id_ for id_ in session.exec(statement).all() if id_ not in alive]
    for start in range(0, len(lost), _CHUNK):
        session.connection().execute(
            update(AssociationRow)
            .where(
                col(AssociationRow.id).in_(lost[start : start + _CHUNK]),
                col(AssociationRow.closed_at).is_(None),
            )
            .values(closed_at=now, how=How.LOST.value, reason=_UNSEEN)
        )
    return len(lost)


def last_seen(session: Session, limit: int, since: datetime | None = None) -> list[LastSeen]:
    """One entry for each calling AE, address and door, the newest first, at most `limit`.

    Args:
        session: Of `Database.read()`.
        limit: entries.
        since: only associations opened then or later count; None: all that are kept.
    """
    table = _table()
    opened_at = func.max(table.c.opened_at)
    brought = or_(table.c.stored > 0, table.c.duplicates > 0)
    statement = (
        sql_select(
            table.c.calling_ae,
            table.c.address,
            table.c.door,
            opened_at,
            func.max(case((brought, table.c.closed_at))),
            func.sum(case((table.c.closed_at.is_(None), 1), else_=0)),
            func.count(),
            func.sum(case((table.c.how.in_((How.ABORTED.value, How.LOST.value)), 1), else_=0)),
            func.sum(table.c.stored),
            func.sum(table.c.duplicates),
            func.sum(table.c.refused),
            func.sum(table.c.n_bytes),
        )
        .where(table.c.door.is_not(None))
        .group_by(table.c.calling_ae, table.c.address, table.c.door)
        .order_by(opened_at.desc(), table.c.calling_ae, table.c.address, table.c.door)
        .limit(max(0, limit))
    )
    if since is not None:
        statement = statement.where(table.c.opened_at >= since)
    rows = cast("Sequence[Sequence[Any]]", session.connection().execute(statement).all())
    return [
        LastSeen(row[0] or "", row[1] or "", row[2] or "", row[3], row[4], *(int(value or 0) for value in row[5:]))
        for row in rows
    ]


def note_resends(session: Session, study_id: str, epoch: int, association_ids: Iterable[str]) -> None:
    """These brought known images to the study while this epoch of it was open. Doing it again changes nothing."""
    rows = [
        {"study_id": study_id, "epoch": epoch, "association_id": id_[:TEXT_LIMIT]}
        for id_ in sorted(set(association_ids))
    ]
    if rows:
        insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
        statement = insert(cast("Table", cast(Any, ResendRow).__table__)).on_conflict_do_nothing()
        session.connection().execute(statement, rows)


def last_sender(session: Session, study_id: str, epoch: int) -> AssociationRow | None:
    """Of the associations that sent to this epoch of the study one that is open, else the last to end; or None.

    Also one that brought nothing new: its sender may have been about to.
    """
    new = select(InstanceRow.association_id).where(InstanceRow.study_id == study_id, InstanceRow.epoch == epoch)
    again = select(ResendRow.association_id).where(ResendRow.study_id == study_id, ResendRow.epoch == epoch)
    statement = (
        select(AssociationRow)
        .where(col(AssociationRow.id).in_(new.union(again)))
        .order_by(col(AssociationRow.closed_at).is_(None).desc(), col(AssociationRow.closed_at).desc())
        .limit(1)
    )
    return session.exec(statement, execution_options={"populate_existing": True}).one_or_none()


def bounded(value: str | None, limit: int) -> str | None:
    """`value` as a column of this width can hold it: PostgreSQL refuses NUL, both databases refuse lone surrogates."""
    if value is None:
        return None
    storable = value.replace("\0", "").encode("utf-8", "replace").decode("utf-8")
    return storable[:limit] or None


def _upsert(session: Session, rows: list[dict[str, Any]], names: Iterable[str], *, only_open: bool = False) -> None:
    table = _table()
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    counts = {"stored": 0, "duplicates": 0, "refused": 0, "n_bytes": 0}
    statement = insert(table)
    changes = {name: getattr(statement.excluded, name) for name in names}
    where = or_(table.c.closed_at.is_(None), table.c.how == How.LOST.value) if only_open else None
    session.connection().execute(
        statement.on_conflict_do_update(index_elements=["id"], set_=changes, where=where),
        [{**counts, **row} for row in rows],
    )


def _table() -> Table:
    return cast(Table, cast(Any, AssociationRow).__table__)

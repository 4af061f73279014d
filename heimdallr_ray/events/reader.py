"""Reads the event table for the live stream."""

from __future__ import annotations

from sqlmodel import col, select

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.tables import EventRow, StudyRow
from heimdallr_ray.catalog.worklist import last_event_id
from heimdallr_ray.events.stream import Event


class CatalogEvents:
    """The `EventSource` over the catalog. Calls block: make them in a thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def latest(self) -> int:
        """The id of the newest event; 0 where there is none."""
        with self._database.read() as session:
            return last_event_id(session)

    def after(self, event_id: int, limit: int) -> list[Event]:
        """At most `limit` events with a larger id, oldest first."""
        statement = (
            select(EventRow, StudyRow.study_uid)
            .join(StudyRow, col(StudyRow.id) == col(EventRow.study_id), isouter=True)
            .where(col(EventRow.id) > event_id)
            .order_by(col(EventRow.id))
            .limit(limit)
        )
        with self._database.read() as session:
            rows = session.exec(statement).all()
        return [Event(row.id or 0, row.at, row.kind, study_uid, row.old, row.new) for row, study_uid in rows]
